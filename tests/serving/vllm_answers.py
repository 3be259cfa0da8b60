"""Greedy answers of one random EvoMoE by transformers and by vLLM, in an environment that has both: prints both as JSON.

Routers and experts are random and far apart, so that another modality, another expert or a lost picture changes the words.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from evomoe import upcycle
from evomoe.conversion.attaching import attach
from evomoe.conversion.exporting import export_folder
from evomoe.mini.small_vlm import IMAGE, Architecture, build_processor, build_tower
from evomoe.model.loading import load_model, load_processor, takes_pictures
from evomoe.model.sparse_model import SparseModel

LONGEST = 24
VIDEO = "<|system|>"  # a token that no prompt has
SENTENCE = "what is the red shape left of a small blue circle and how many are there in this picture of mine"
SIZES = Architecture(hidden_size=64, ffn_size=128, layers=4, heads=2, vision_width=64, vision_layers=2)


def _text_config(kind: type[transformers.PreTrainedConfig], **more: Any) -> transformers.PreTrainedConfig:
    return kind(
        hidden_size=SIZES.hidden_size,
        intermediate_size=SIZES.ffn_size,
        num_hidden_layers=SIZES.layers,
        num_attention_heads=SIZES.heads,
        num_key_value_heads=SIZES.heads,
        vocab_size=len(_processor().tokenizer),
        max_position_embeddings=512,
        initializer_range=0.2,
        **more,
    )


def _processor() -> transformers.LlavaProcessor:
    return build_processor([SENTENCE] * 4, SIZES)


def _upcycled(model: transformers.PreTrainedModel, options: dict[str, Any]) -> SparseModel:
    noise = {"expert_init": "noise", "init_options": {"std": 0.2}}
    return upcycle(model.eval(), **noise | {"moe_layers": "all"} | options)


def llava(options: dict[str, Any], text: type[transformers.PreTrainedConfig] = transformers.Qwen2Config) -> SparseModel:
    """A LLaVA that became sparse with ``options``."""
    config = transformers.LlavaConfig(
        text_config=_text_config(text, **options.pop("text", {})),
        vision_config=build_tower(SIZES).config,
        image_token_index=_processor().tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_seq_length=(SIZES.image_size // SIZES.patch_size) ** 2,
    )
    return _upcycled(transformers.LlavaForConditionalGeneration(config), options)


def llava_on_phi(options: dict[str, Any]) -> SparseModel:
    """The same on an FFN of two maps with biases."""
    return llava(options, transformers.PhiConfig)


def text_only(options: dict[str, Any]) -> SparseModel:
    """A language model that became sparse."""
    return _upcycled(transformers.Qwen2ForCausalLM(_text_config(transformers.Qwen2Config)), options)


def attached(options: dict[str, Any]) -> SparseModel:
    """A language model that was born sparse, with a variable number of its experts."""
    own = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 64, "head_dim": 32}
    model = transformers.Qwen3MoeForCausalLM(_text_config(transformers.Qwen3MoeConfig, **own)).eval()
    for name, parameter in model.named_parameters():
        if "experts" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return attach(model, **options)


class WithoutVideos(transformers.Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor less its video part, which needs torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None, **_: Any) -> None:
        self.image_token, self.video_token = IMAGE, VIDEO
        self.image_token_id, self.video_token_id = map(tokenizer.convert_tokens_to_ids, (IMAGE, VIDEO))
        transformers.ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def _processor_of_qwen() -> WithoutVideos:
    of_llava, size = _processor(), SIZES.image_size**2
    pixels = {"shortest_edge": size // 4, "longest_edge": 2 * size}
    of_images = transformers.Qwen2VLImageProcessorPil(size=pixels, patch_size=SIZES.patch_size // 2, merge_size=2)
    return WithoutVideos(of_images, of_llava.tokenizer, of_llava.chat_template)


def qwen(options: dict[str, Any]) -> SparseModel:
    """A Qwen2.5-VL, whose positions have three parts (mRoPE), that became sparse with ``options``."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    image, video = map(_processor().tokenizer.convert_tokens_to_ids, (IMAGE, VIDEO))
    config = transformers.Qwen2_5_VLConfig(
        text_config=_text_config(transformers.Qwen2Config).to_dict() | {"model_type": "qwen2_5_vl_text", "rope_parameters": rope},
        vision_config={
            "depth": 2, "hidden_size": 64, "num_heads": 2, "intermediate_size": 128, "out_hidden_size": SIZES.hidden_size,
            "patch_size": SIZES.patch_size // 2, "spatial_merge_size": 2, "window_size": 2 * SIZES.patch_size, "fullatt_block_indexes": [1],
        },
        image_token_id=image, video_token_id=video, vision_start_token_id=video, vision_end_token_id=video,
    )  # fmt: skip
    return _upcycled(transformers.Qwen2_5_VLForConditionalGeneration(config), options)


MODELS: dict[str, Callable[[dict[str, Any]], SparseModel]] = {
    "llava": llava,
    "llava-on-phi": llava_on_phi,
    "text-only": text_only,
    "attached": attached,
    "qwen": qwen,
}


def save_model(folder: Path, options: dict[str, Any], kind: str = "llava") -> None:
    """One of ``MODELS`` with random weights, and its processor or tokenizer."""
    torch.manual_seed(0)
    model = MODELS[kind](options).eval()
    for block in model.moe_blocks.values():
        for parameter in block.router.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    processor: Any = _processor_of_qwen() if kind == "qwen" else _processor()
    (processor if takes_pictures(model.config) else processor.tokenizer).save_pretrained(folder)


def prompts(pictures: bool = True) -> list[tuple[str, list[Image.Image]]]:
    """Words, and none to three pictures before them."""
    random = np.random.default_rng(0)

    def picture() -> Image.Image:
        colours = random.integers(0, 255, (4, 4, 3), dtype=np.uint8)  # as large as the tower's patches
        return Image.fromarray(colours).resize((SIZES.image_size, SIZES.image_size), Image.Resampling.NEAREST)

    found = []
    for number in range(12):
        shown = [picture() for _ in range(number % 4 if pictures else 0)]
        words = " ".join(random.choice(SENTENCE.split(), size=int(random.integers(2, 25))))
        found.append((f"<|user|>{f'{IMAGE} ' * len(shown)}{words}<|assistant|>", shown))  # apart, for processors count runs
    return found


def by_transformers(folder: Path) -> list[list[int]]:
    """One prompt after the other."""
    model, processor, answers = load_model(folder, "float32").eval(), load_processor(folder), []
    sees = takes_pictures(model.config)
    for text, pictures in prompts(sees):
        inputs = (
            processor(text=text, images=pictures or None, return_tensors="pt") if sees else processor(text, return_tensors="pt")
        )
        ids = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False, eos_token_id=None)
        answers.append(ids[0, inputs["input_ids"].shape[1] :].tolist())
    return answers


def by_vllm(folder: Path, engine: dict[str, Any]) -> list[list[list[int]]]:
    """All prompts at once, twice: the second time much of them is in the cache of prefixes."""
    from vllm import LLM, SamplingParams

    sees = takes_pictures(transformers.AutoConfig.from_pretrained(folder))
    engine = {"dtype": "float32", "max_model_len": 256, "block_size": 32} | engine
    llm = LLM(str(folder), **engine | ({"limit_mm_per_prompt": {"image": 3}} if sees else {}))
    greedy = SamplingParams(temperature=0, max_tokens=LONGEST, ignore_eos=True)
    asked = [{"prompt": text} | ({"multi_modal_data": {"image": shown}} if shown else {}) for text, shown in prompts(sees)]
    return [[list(one.outputs[0].token_ids) for one in llm.generate(asked, greedy, use_tqdm=False)] for _ in range(2)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=MODELS, default="llava")
    parser.add_argument("--options", type=json.loads, default={}, help="of the mixture, in JSON")
    parser.add_argument("--engine", type=json.loads, default={}, help="options of vLLM, in JSON")
    parser.add_argument("--blind", action="store_true", help="vLLM's routers take every token for text")
    parser.add_argument("--export", choices=["dense", "native"], help="the model is exported first; vLLM has it without evomoe")
    arguments = parser.parse_args()
    if arguments.model == "qwen":  # found by this name where the folder is loaded
        WithoutVideos.__name__ = "Qwen2_5_VLProcessor"
        for module in (transformers, transformers.models.qwen2_5_vl, transformers.models.qwen2_5_vl.processing_qwen2_5_vl):
            vars(module)["Qwen2_5_VLProcessor"] = WithoutVideos
    folder = arguments.folder
    save_model(folder, arguments.options, arguments.model)
    expected = by_transformers(folder)
    if arguments.blind:
        from evomoe.serving import vllm_model

        vllm_model.image_token_ids = lambda config: ()
    if arguments.export:
        folder = folder.with_name("exported")
        export_folder(arguments.folder, folder, arguments.export)
        if arguments.export == "dense":
            expected = by_transformers(folder)
    print(json.dumps({"expected": expected, "answers": by_vllm(folder, arguments.engine)}))


if __name__ == "__main__":
    main()
