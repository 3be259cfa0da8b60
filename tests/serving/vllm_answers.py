"""Greedy answers of one random EvoMoE by transformers and by vLLM, in an environment that has both: prints both as JSON.

Routers and experts are random and far apart, so that another modality, another expert or a lost picture changes the words.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from evomoe import upcycle
from evomoe.mini.small_vlm import IMAGE, Architecture, build_processor, build_tower
from evomoe.model.sparse_model import SparseModel

LONGEST = 24
SENTENCE = "what is the red shape left of a small blue circle and how many are there in this picture of mine"
SIZES = Architecture(hidden_size=64, ffn_size=128, layers=4, heads=2, vision_width=64, vision_layers=2)
LLAVA_ON = {
    "qwen2": transformers.Qwen2Config,
    "phi": transformers.PhiConfig,  # fc1 and fc2 with biases
}


def save_model(folder: Path, options: dict[str, Any], language_model: str = "qwen2") -> SparseModel:
    """A LLaVA with random weights that became sparse with ``options``, and its processor."""
    torch.manual_seed(0)
    processor = build_processor([SENTENCE] * 4, SIZES)
    text = LLAVA_ON[language_model](
        hidden_size=SIZES.hidden_size,
        intermediate_size=SIZES.ffn_size,
        num_hidden_layers=SIZES.layers,
        num_attention_heads=SIZES.heads,
        num_key_value_heads=SIZES.heads,
        vocab_size=len(processor.tokenizer),
        max_position_embeddings=512,
        initializer_range=0.2,
        **options.pop("text", {}),
    )
    tower = build_tower(SIZES)
    config = transformers.LlavaConfig(
        text_config=text,
        vision_config=tower.config,
        image_token_index=processor.tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_seq_length=(SIZES.image_size // SIZES.patch_size) ** 2,
    )
    dense = transformers.LlavaForConditionalGeneration(config).eval()
    model = upcycle(dense, expert_init="noise", init_options={"std": 0.2}, **{"moe_layers": "all"} | options).eval()
    for block in model.moe_blocks.values():
        for parameter in block.router.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


def prompts() -> list[tuple[str, list[Image.Image]]]:
    """Words, and none to three pictures before them."""
    random = np.random.default_rng(0)

    def picture() -> Image.Image:
        colours = random.integers(0, 255, (4, 4, 3), dtype=np.uint8)  # as large as the tower's patches
        return Image.fromarray(colours).resize((SIZES.image_size, SIZES.image_size), Image.Resampling.NEAREST)

    found = []
    for number in range(12):
        pictures = [picture() for _ in range(number % 4)]
        words = " ".join(random.choice(SENTENCE.split(), size=int(random.integers(2, 25))))
        found.append((f"<|user|>{IMAGE * len(pictures)}{words}<|assistant|>", pictures))
    return found


def by_transformers(folder: Path) -> list[list[int]]:
    """One prompt after the other."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    answers = []
    for text, pictures in prompts():
        inputs = processor(text=text, images=pictures or None, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)
        answers.append(ids[0, inputs["input_ids"].shape[1] :].tolist())
    return answers


def by_vllm(folder: Path, engine: dict[str, Any]) -> list[list[list[int]]]:
    """All prompts at once, twice: the second time much of them is in the cache of prefixes."""
    from vllm import LLM, SamplingParams

    llm = LLM(str(folder), dtype="float32", max_model_len=256, limit_mm_per_prompt={"image": 3}, block_size=32, seed=0, **engine)
    greedy = SamplingParams(temperature=0, max_tokens=LONGEST, ignore_eos=True)
    asked = [{"prompt": text} | ({"multi_modal_data": {"image": pictures}} if pictures else {}) for text, pictures in prompts()]
    return [[list(one.outputs[0].token_ids) for one in llm.generate(asked, greedy, use_tqdm=False)] for _ in range(2)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--moe", type=json.loads, default={}, help="options of the mixture, in JSON")
    parser.add_argument("--language-model", choices=LLAVA_ON, default="qwen2")
    parser.add_argument("--engine", type=json.loads, default={}, help="options of vLLM, in JSON")
    parser.add_argument("--blind", action="store_true", help="vLLM's routers take every token for text")
    arguments = parser.parse_args()
    model = save_model(arguments.folder, arguments.moe, arguments.language_model)
    expected = by_transformers(arguments.folder)
    if arguments.blind:
        from evomoe.serving import vllm_model

        vllm_model.image_token_ids = lambda config: ()
    answers = by_vllm(arguments.folder, arguments.engine)
    print(json.dumps({"router": dataclasses.asdict(model.config.moe)["router"], "expected": expected, "answers": answers}))


if __name__ == "__main__":
    main()
