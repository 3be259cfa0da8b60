"""Tiny random models of real transformers classes, built offline."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    Gemma2Config,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
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


def make_language_model(config_class: type[PreTrainedConfig] = LlamaConfig, **fields) -> PreTrainedModel:
    """A causal language model of any family that shares Llama's names for its sizes."""
    return AutoModelForCausalLM.from_config(config_class(**_text(**fields))).eval()


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


TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words of easy-VQA, one id each; <image> is the tiny models' image token."""
    special = ["<pad>", "<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>", "<|system|>"]
    words = [
        "what",
        "color",
        "is",
        "the",
        "shape",
        "a",
        "blue",
        "red",
        "circle",
        "triangle",
        "yes",
        "no",
        "there",
        "not",
        "describe",
        "image",
        "?",
        ".",
        ",",
        "\n",
    ]
    vocabulary = {word: i for i, word in enumerate([*special, *words])} | {"<image>": IMAGE_TOKEN}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|\n|[?.,]"), "isolated")
    tokens = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    extra = ["<image>", "<|user|>", "<|assistant|>", "<|system|>"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=extra, chat_template=TEMPLATE, padding_side="left", **tokens
    )


def make_processor() -> LlavaProcessor:
    """The processor of the tiny LLaVA: 4 image tokens per picture."""
    return LlavaProcessor(
        SiglipImageProcessorPil(size={"height": 16, "width": 16}),
        make_tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="full",
        image_token="<image>",
        chat_template=TEMPLATE,
    )


def make_records(count: int = 24) -> list[dict]:
    """LLaVA records over three pictures, some without a picture, of differing length."""
    records = []
    for i in range(count):
        image = {"image": f"{i % 3}.png"} if i % 4 else {}
        mark = "<image>\n" if image else ""
        question = "what color is the shape ?" if i % 2 else "is there a blue shape ? is there not a red circle ?"
        answer = ["red", "blue", "yes", "no"][i % 4]
        turns = [{"from": "human", "value": mark + question}, {"from": "gpt", "value": answer}]
        records.append({"id": str(i), "conversations": turns, **image})
    return records


def write_workspace(folder: Path, records: list[dict] | None = None) -> Path:
    """Writes model/, images/ and data.json into ``folder``."""
    torch.manual_seed(0)
    make_llava().save_pretrained(folder / "model")
    make_processor().save_pretrained(folder / "model")
    (folder / "images").mkdir()
    for i, color in enumerate(("red", "blue", "white")):
        Image.new("RGB", (16, 16), color).save(folder / "images" / f"{i}.png")
    (folder / "data.json").write_text(json.dumps(make_records() if records is None else records))
    return folder


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
