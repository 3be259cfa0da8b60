"""Tiny random models of real transformers classes, built offline."""

from collections.abc import Callable

import torch
from transformers import (
    CLIPVisionConfig,
    Gemma2Config,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PhiConfig,
    PreTrainedModel,
    SiglipVisionConfig,
)

IMAGE_TOKEN = 120
IMAGE_TOKENS = 4  # per picture
VOCABULARY = 128


def _vision() -> dict[str, int]:
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }


def _text(**fields) -> dict:
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": VOCABULARY,
    }
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return sizes | {"num_key_value_heads": 2, "max_position_embeddings": 256} | tokens | fields


def make_llava(text_config=None) -> PreTrainedModel:
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**_vision()),
            text_config=text_config or LlamaConfig(**_text()),
            image_token_id=IMAGE_TOKEN,
            vision_feature_select_strategy="default",
        )
    )


def make_llava_phi() -> PreTrainedModel:
    """A plain FFN (fc1, fc2) with biases."""
    return make_llava(PhiConfig(**_text(num_key_value_heads=4)))


def make_paligemma() -> PreTrainedModel:
    text = Gemma2Config(**_text(head_dim=8))
    vision = SiglipVisionConfig(**_vision(), vision_use_head=False)
    config = PaliGemmaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN, projection_dim=32)
    config.text_config.num_image_tokens = IMAGE_TOKENS
    return PaliGemmaForConditionalGeneration(config)


def make_idefics3() -> PreTrainedModel:
    config = Idefics3Config(
        vision_config=_vision(), text_config=LlamaConfig(**_text()), image_token_id=IMAGE_TOKEN, scale_factor=1
    )
    return Idefics3ForConditionalGeneration(config)


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llava": make_llava,
    "llava-phi": make_llava_phi,
    "paligemma": make_paligemma,
    "idefics3": make_idefics3,
}


def inputs_for(
    model: PreTrainedModel, images: tuple[int, ...] = (1, 0), text: int = 5, padding: str = "right"
) -> dict[str, torch.Tensor]:
    """A batch with ``images[i]`` pictures and some words in sample i, padded on one side.

    Ids are drawn from a fixed seed, so the same arguments give the same batch.
    """
    generator = torch.Generator().manual_seed(7)
    rows = []
    for i, count in enumerate(images):
        words = torch.randint(3, 100, (text + i,), generator=generator)
        rows.append(torch.cat([torch.tensor([1]), torch.full((count * IMAGE_TOKENS,), IMAGE_TOKEN), words]))
    width = max(map(len, rows))
    ids_BS, mask_BS = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if padding == "right" else slice(width - len(row), width)
        ids_BS[i, where], mask_BS[i, where] = row, 1
    batch = {"input_ids": ids_BS, "attention_mask": mask_BS}
    total = sum(images)
    if total:
        pixels = torch.randn(total, 3, 16, 16, generator=generator)
        if type(model).__name__.endswith("Idefics3ForConditionalGeneration"):
            per_sample = max(images)
            padded = torch.zeros(len(images), per_sample, 3, 16, 16)
            start = 0
            for i, count in enumerate(images):
                padded[i, :count] = pixels[start : start + count]
                start += count
            pixels = padded
        batch["pixel_values"] = pixels
    if type(model).__name__.endswith("PaliGemmaForConditionalGeneration"):
        batch["token_type_ids"] = torch.zeros_like(ids_BS)
    return batch
