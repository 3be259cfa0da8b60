"""A LLaVA of one's own parts: any language model and any vision tower, joined by a fresh projector."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.modeling_utils import PreTrainedModel

from evomoe.accounting import readable
from evomoe.files import new_folder

IMAGE_TOKEN = "<image>"


def compose(
    language_model: PreTrainedModel, vision_tower: PreTrainedModel, tokenizer: Any, image_processor: Any, seed: int = 0
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Joins a causal language model and a vision tower into a LLaVA with a fresh projector.

    The tokenizer gets an ``<image>`` token if it has none, and the embeddings a row for it. A tower with a class token
    (CLIP) gives its patches of the last but one layer, as in LLaVA-1.5; one without (SigLIP) all of its last layer's.

    Args:
        language_model: e.g. from ``AutoModelForCausalLM``.
        vision_tower: e.g. from ``AutoModel``; of a two-tower model its ``vision_model`` is taken.
        tokenizer: of the language model; must have a chat template.
        image_processor: of the vision tower.
        seed: draws the projector.

    Returns:
        Model and processor.

    Raises:
        ValueError: a part does not fit; the message says which.
    """
    if not tokenizer.chat_template:
        raise ValueError("The language model's tokenizer has no chat template; set tokenizer.chat_template first.")
    vision_tower = getattr(vision_tower, "vision_model", vision_tower)
    vision_config = vision_tower.config
    if not hasattr(vision_config, "patch_size"):
        raise ValueError(f"{type(vision_tower).__name__} is no patch-based vision tower: its config has no patch_size.")
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]}, replace_additional_special_tokens=False)
    image_token = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    if language_model.get_input_embeddings().num_embeddings <= image_token:
        language_model.resize_token_embeddings(image_token + 1)
    has_class_token = any(name.endswith("class_embedding") for name, _ in vision_tower.named_parameters())
    strategy, layer = ("default", -2) if has_class_token else ("full", -1)
    config = LlavaConfig(
        vision_config=vision_config,
        text_config=language_model.config,
        image_token_id=image_token,
        vision_feature_select_strategy=strategy,
        vision_feature_layer=layer,
        image_seq_length=(vision_config.image_size // vision_config.patch_size) ** 2,
        tie_word_embeddings=language_model.config.tie_word_embeddings,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower = vision_tower
    model.model.language_model = language_model.get_decoder()
    model.set_output_embeddings(language_model.get_output_embeddings())
    model.tie_weights()
    model.generation_config = language_model.generation_config
    processor = LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=vision_config.patch_size,
        vision_feature_select_strategy=strategy,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=int(has_class_token),
        chat_template=with_images(tokenizer.chat_template),
    )
    return model, processor


def with_images(template: str) -> str:
    """A text model's chat template, made to accept messages whose content lists images and texts.

    Each message's content becomes one string first, ``<image>`` standing for a picture; then the template goes on as it was.
    """
    return (
        "{%- set ns = namespace(messages=[]) -%}{%- for message in messages -%}"
        "{%- if message['content'] is string -%}{%- set text = message['content'] -%}{%- else -%}"
        "{%- set text -%}{%- for part in message['content'] -%}"
        "{{- '" + IMAGE_TOKEN + "' if part['type'] == 'image' else part['text'] -}}{%- endfor -%}{%- endset -%}{%- endif -%}"
        "{%- set ns.messages = ns.messages + [dict(message, content=text | string)] -%}{%- endfor -%}"
        "{%- set messages = ns.messages -%}" + template
    )


def compose_folder(text: str, vision: str, out: str | Path, seed: int = 0, trust_remote_code: bool = False) -> str:
    """Loads the parts from folders or the hub, joins them and writes model and processor to ``out``."""
    with new_folder(out) as folder:
        kwargs = {"trust_remote_code": trust_remote_code}
        vision_config = AutoConfig.from_pretrained(vision, **kwargs)
        if not hasattr(vision_config, "patch_size") and not hasattr(vision_config, "vision_config"):
            raise ValueError(f"--vision {vision}: a model of type '{vision_config.model_type}' has no vision tower.")
        tokenizer = AutoTokenizer.from_pretrained(text, **kwargs)
        model, processor = compose(
            AutoModelForCausalLM.from_pretrained(text, **kwargs),
            AutoModel.from_pretrained(vision, **kwargs),
            tokenizer,
            AutoImageProcessor.from_pretrained(vision, **kwargs),
            seed,
        )
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    projector = sum(p.numel() for p in model.model.multi_modal_projector.parameters())
    return (
        f"{out}: a LLaVA of {text} and {vision}; its projector ({readable(projector)} parameters) is untrained. "
        f"Next: evomoe train --model {out} --stages 0 1 2 3 ..."
    )
