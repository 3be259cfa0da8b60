"""A tokenizer, a processor, records and pictures for the tiny LLaVA."""

import json
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlavaProcessor, PreTrainedTokenizerFast, SiglipImageProcessorPil

from tiny.families import IMAGE_TOKEN, make_llava

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
