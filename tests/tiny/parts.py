"""What a LLaVA is composed of, tiny: language models, vision towers, and what prepares their inputs."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import (
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tiny.families import make_language_model
from tiny.workspace import make_tokenizer

VISION = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
}  # fmt: skip
TEXT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_text_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny tokenizer without <image>, with a chat template for plain strings."""
    state = json.loads(make_tokenizer().backend_tokenizer.to_str())
    del state["model"]["vocab"]["<image>"]
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] != "<image>"]
    tokens = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), chat_template=TEXT_TEMPLATE, padding_side="left", **tokens
    )


def make_clip() -> tuple[PreTrainedModel, object]:
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return CLIPVisionModel(CLIPVisionConfig(**VISION)), processor


def make_siglip() -> tuple[PreTrainedModel, object]:
    return SiglipVisionModel(SiglipVisionConfig(**VISION)), SiglipImageProcessorPil(size={"height": 16, "width": 16})


def make_two_towers(kind: type[PreTrainedModel]) -> PreTrainedModel:
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50,
            "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    return kind(kind.config_class(vision_config=VISION, text_config=text))


def write_parts(folder: Path) -> tuple[Path, Path]:
    """Writes a language model and a two-tower CLIP to two folders."""
    torch.manual_seed(0)
    make_language_model(vocab_size=27).save_pretrained(folder / "text")
    make_text_tokenizer().save_pretrained(folder / "text")
    make_two_towers(CLIPModel).save_pretrained(folder / "vision")
    make_clip()[1].save_pretrained(folder / "vision")
    return folder / "text", folder / "vision"
