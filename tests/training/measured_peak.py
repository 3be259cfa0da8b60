"""Run as a program: trains a small model for a few steps by the Trainer itself and prints by how many bytes the process grew.

Freed memory must go back to the system at once, or it would count twice: MALLOC_MMAP_THRESHOLD_=65536.
"""

import gc
import json
import sys
import tempfile
from pathlib import Path

import torch
from tiny import IMAGE_TOKEN
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    TrainingArguments,
)
from transformers.modeling_utils import PreTrainedModel

from evomoe import upcycle
from evomoe.data.labels import IGNORED
from evomoe.recipe.options import EvolutionOptions
from evomoe.training.callbacks import EvolutionCallback
from evomoe.training.trainable import set_trainable
from evomoe.training.trainer import EvoMoETrainer

LAYERS, ROWS, LENGTH, PATCHES = 6, 6, 256, 64
MOE_LAYERS = [0, 2, 4]


def text_fields(width: int) -> dict:
    return {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": LAYERS, "num_attention_heads": 8,
            "num_key_value_heads": 4, "vocab_size": 4096}  # fmt: skip


def make(name: str, width: int = 512) -> PreTrainedModel:
    torch.manual_seed(0)
    if name == "qwen2-vl":
        vision = {"depth": 2, "embed_dim": 128, "hidden_size": width, "num_heads": 4}
        rope = {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 1e4}
        text = text_fields(width) | {"rope_parameters": rope if width == 512 else rope | {"mrope_section": [1, 1, 2]}}
        return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, image_token_id=IMAGE_TOKEN))
    vision = CLIPVisionConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, image_size=128, patch_size=16
    )
    tied = {"tie_word_embeddings": name == "tied"}
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**text_fields(width), **tied),
        image_token_id=IMAGE_TOKEN,
        vision_feature_select_strategy="default",
        **tied,
    )
    return LlavaForConditionalGeneration(config)


def model_of(name: str, trained: str, width: int = 512) -> PreTrainedModel:
    dense = make(name, width)
    if not trained.startswith("router"):
        return dense
    options = {"hypernet_width": 16, "rank": 4}
    return upcycle(dense, moe_layers=MOE_LAYERS, expert_init="noise", router_options=options)


def batch_of(name: str, rows: int = ROWS, length: int = LENGTH) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids_RS = torch.randint(200, 4000, (rows, length), generator=generator)
    pictures = {}
    if name != "qwen2-vl":
        ids_RS[:, :PATCHES] = IMAGE_TOKEN
        pictures = {"pixel_values": torch.randn(rows, 3, 128, 128, generator=generator)}
    labels_RS = ids_RS.clone()
    labels_RS[:, : -length // 8] = IGNORED
    return {"input_ids": ids_RS, "attention_mask": torch.ones_like(ids_RS), "labels": labels_RS, **pictures}


def arguments_of(options: dict, folder: str, rows: int = ROWS) -> TrainingArguments:
    fixed = {"max_steps": 2, "use_cpu": True, "report_to": [], "save_strategy": "no", "disable_tqdm": True}
    return TrainingArguments(folder, per_device_train_batch_size=rows, **fixed | options)


class Rows(torch.utils.data.Dataset):
    """A batch, row by row, over and over."""

    def __init__(self, batch: dict[str, torch.Tensor]) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 100 * len(self.batch["input_ids"])

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {name: tensor[i % len(tensor)] for name, tensor in self.batch.items()}


def train(name: str, trained: str, options: dict, width: int, rows: int, length: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = model_of(name, trained, width)
        set_trainable(model, trained, MOE_LAYERS)
        evolution = EvolutionCallback(EvolutionOptions(), MOE_LAYERS, Path(folder) / "start.safetensors")
        EvoMoETrainer(
            model=model,
            args=arguments_of(options, folder, rows),
            train_dataset=Rows(batch_of(name, rows, length)),
            evolution=evolution if trained == "ffn" else None,
        ).train()


def bytes_of(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


if __name__ == "__main__":
    name, trained, given = sys.argv[1:]
    train(name, trained, json.loads(given), 64, 2, 80)  # what is imported on the way counts for nothing
    gc.collect()
    before = bytes_of("VmRSS")
    train(name, trained, json.loads(given), 512, ROWS, LENGTH)
    print(bytes_of("VmHWM") - before)
