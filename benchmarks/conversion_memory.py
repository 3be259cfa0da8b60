"""Peak memory of ``evomoe upcycle`` on a random LLaVA of a billion parameters: ``make bench``.

The conversion runs in a process of its own; what Python and its libraries take before it starts does not count. The
yardstick is the dense model plus one layer's experts; whoever converts in memory needs the whole sparse model.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from timing import machine
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from evomoe.demo.journey import DENSE_MODEL
from evomoe.model.configuration import MoEConfig
from evomoe.model.families import sparse_config
from evomoe.model.loading import empty_model, load_processor
from evomoe.model.sparse_model import is_sparse


def config_of_a_billion() -> LlavaConfig:
    """TinyLlama-1.1B's sizes with CLIP ViT-L/14's tower."""
    text = LlamaConfig(hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
                       num_key_value_heads=4, vocab_size=32064)  # fmt: skip
    vision = CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
                              image_size=336, patch_size=14)  # fmt: skip
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=32000, dtype="bfloat16")


def convert(dense: str, out: str) -> None:
    """What the measured process does; prints the bytes that its peak grew by."""
    from evomoe.conversion.upcycled_folder import upcycle_folder

    before = peak_bytes()
    upcycle_folder(dense, out)
    print(peak_bytes() - before)


def peak_bytes() -> int:
    """The most memory this process has had, as Linux counts it. (getrusage's peak is inherited from the parent process.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def main() -> None:
    config = config_of_a_billion()
    moe = MoEConfig.for_model(config, "alternating")
    sparse = empty_model(sparse_config(config, moe))
    assert is_sparse(sparse)
    blocks = list(sparse.moe_blocks.values())
    experts = sum(p.numel() for p in blocks[0].experts.parameters()) * 2
    whole = sum(p.numel() for p in sparse.parameters()) * 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.set_default_dtype(torch.bfloat16)
        dense_model = LlavaForConditionalGeneration(config)
        dense = sum(p.numel() for p in dense_model.parameters()) * 2
        dense_model.save_pretrained(folder / "dense")
        load_processor(DENSE_MODEL).save_pretrained(folder / "dense")  # any will do
        del dense_model
        begin = time.perf_counter()
        out = subprocess.run(
            [sys.executable, __file__, str(folder / "dense"), str(folder / "sparse")], check=True, capture_output=True, text=True
        ).stdout
        seconds = time.perf_counter() - begin
    peak, gib = int(out.split()[-1]), 2**30
    print(f"{machine()}: evomoe upcycle of {dense / 2e9:.2f} B parameters in bfloat16 ({len(blocks)} MoE layers, 4 experts)")
    print(
        f"peak {peak / gib:.2f} GiB = {peak / (dense + experts):.2f} x (dense {dense / gib:.2f} GiB + one layer's experts "
        f"{experts / gib:.2f} GiB); the whole sparse model has {whole / gib:.2f} GiB; {seconds:.0f} s"
    )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        convert(*sys.argv[1:])
    else:
        main()
