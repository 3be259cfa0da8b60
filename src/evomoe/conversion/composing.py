"""A LLaVA of one's own parts: any language model and any vision tower, joined by a fresh projector."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BaseImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)
from transformers.modeling_utils import PreTrainedModel

from evomoe.model.loaded_weights import load_checked
from evomoe.model.loading import load_config, takes_pictures
from evomoe.recipe.options import LARGEST_SEED, check_whole
from evomoe.support import hf
from evomoe.support.device import moved
from evomoe.support.errors import OptionError, foreign
from evomoe.support.files import new_folder
from evomoe.support.text import readable

IMAGE_TOKEN = "<image>"


def compose(
    language_model: PreTrainedModel,
    vision_tower: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    image_processor: BaseImageProcessor,
    seed: int = 0,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Joins a causal language model and a vision tower into a LLaVA with a fresh projector.

    The parts are taken, not copied; the vision tower takes on the language model's precision. The tokenizer gets an
    ``<image>`` token if it has none, and the embeddings a row for it. A tower with a class token (CLIP) gives its patches of
    the last but one layer, as in LLaVA-1.5; one without (SigLIP) all of its last layer's.

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
    template = tokenizer.chat_template
    if not isinstance(template, str) or not template:
        raise ValueError("The language model's tokenizer has no chat template; set tokenizer.chat_template first.")
    vision_tower = getattr(vision_tower, "vision_model", vision_tower)
    for part in (language_model, vision_tower):  # its configuration would call the LLaVA quantized, too: it could not be saved
        if getattr(part, "is_quantized", False):
            raise ValueError(
                f"{type(part).__name__} is quantized; load it in full precision (a GGUF file: "
                "quantization_config=GgufConfig(dequantize=True))."
            )
    vision_config = vision_tower.config
    if not hasattr(vision_config, "patch_size"):
        raise ValueError(f"{type(vision_tower).__name__} is not a patch-based vision tower: its config has no patch_size.")
    moved(vision_tower, language_model.device, language_model.dtype)
    patches, class_tokens = _features(vision_tower, image_processor)
    strategy, layer = ("default", -2) if class_tokens else ("full", -1)
    tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    image_token = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    assert isinstance(image_token, int)
    embeddings: Any = language_model.get_input_embeddings()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if embeddings.num_embeddings <= image_token:
            language_model.resize_token_embeddings(image_token + 1)
        config = LlavaConfig(
            vision_config=deepcopy(vision_config),  # the new configuration takes its parts over and resets their attention
            text_config=deepcopy(language_model.config),
            image_token_index=image_token,
            vision_feature_select_strategy=strategy,
            vision_feature_layer=layer,
            image_seq_length=patches,
            tie_word_embeddings=language_model.config.tie_word_embeddings,
        )
        model = _join(config, language_model, vision_tower)
    processor = LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=vision_config.patch_size,
        vision_feature_select_strategy=strategy,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=class_tokens,
        chat_template=with_images(template),
    )
    return model, processor


@torch.no_grad()
def _features(vision_tower: PreTrainedModel, image_processor: BaseImageProcessor) -> tuple[int, int]:
    """How many patches the tower makes of a picture, and how many class tokens it puts before them: tried on a blank one."""
    size, patch = vision_tower.config.image_size, vision_tower.config.patch_size
    pixels = image_processor(images=Image.new("RGB", (size, size)), return_tensors="pt")["pixel_values"]
    patches = (pixels.shape[-2] // patch) * (pixels.shape[-1] // patch)
    try:
        out = vision_tower(pixels.to(vision_tower.device, vision_tower.dtype), output_hidden_states=True)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"The image processor makes pictures of {tuple(pixels.shape[-2:])} pixels, which the vision tower (image_size "
            f"{size}) does not take: {error}"
        ) from error
    extra = out.hidden_states[-1].shape[1] - patches
    if extra not in (0, 1):
        raise ValueError(
            f"{type(vision_tower).__name__} gives {patches + extra} features for {patches} patches; LLaVA's class takes towers "
            "with one class token or none."
        )
    return patches, extra


@torch.no_grad()
def _join(config: LlavaConfig, language_model: PreTrainedModel, vision_tower: PreTrainedModel) -> LlavaForConditionalGeneration:
    """The LLaVA of both parts; only the projector's weights are drawn."""
    probe = torch.arange(1, 9, device=language_model.device).unsqueeze(0)
    expected = language_model.eval()(input_ids=probe).logits
    try:
        with torch.device("meta"):
            model = LlavaForConditionalGeneration(config)
    except AttributeError as error:  # it looks for the embeddings where Llama has them
        raise ValueError(f"{type(language_model).__name__} does not fit into LLaVA's class: {error}") from error
    names = set(model.state_dict())
    model.model.vision_tower = vision_tower
    model.model.language_model = language_model.get_decoder()
    model.set_output_embeddings(language_model.get_output_embeddings())
    projector = model.model.multi_modal_projector.to_empty(device=language_model.device).to(language_model.dtype)
    for module in projector.modules():
        hf.initialize(model, module)
    model.tie_weights()
    model.generation_config = language_model.generation_config
    # Both checks are about loading the model again: LLaVA's class has no place for a head with a bias or a scale of its own.
    strangers = names.symmetric_difference(model.state_dict())
    if strangers:
        raise ValueError(
            f"{type(language_model).__name__} and {type(vision_tower).__name__} do not fit into LLaVA's class, which could not "
            f"load these tensors again: {', '.join(sorted(strangers)[:3])}."
        )
    if not torch.allclose(model.eval()(input_ids=probe).logits, expected, atol=1e-4, rtol=1e-2):
        raise ValueError(
            f"{type(language_model).__name__} computes its logits in a way that LLaVA's class does not (scaled or soft-capped): "
            "its answers would change."
        )
    return model


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


@contextmanager
def _naming(option: str, part: str) -> Iterator[None]:
    """Lets the errors of a block name the part that they are about, and the option that named it, in one line."""
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        raise OptionError(option, f"{part}: {foreign(error)}") from error


def compose_folder(text: str, vision: str, out: str | Path, seed: int = 0, trust_remote_code: bool = False) -> str:
    """Loads the parts from folders or the hub, joins them and writes model and processor to ``out``.

    Raises:
        OptionError: a part cannot be loaded, or does not fit to the other, or the seed is none.
        ValueError: ``out`` exists.
    """
    check_whole("seed", seed, 0, LARGEST_SEED)
    with new_folder(out) as folder:
        kwargs = {"trust_remote_code": trust_remote_code}
        with _naming("text", text):
            if takes_pictures(load_config(text, **kwargs)):
                raise ValueError("this is a vision-language model already; name a language model alone.")
            tokenizer = AutoTokenizer.from_pretrained(text, **kwargs)
            if tokenizer is None or not tokenizer.chat_template:
                raise ValueError(
                    "its tokenizer has no chat template. Take the model's chat (instruct) variant, or save the model to a folder and "
                    "write the template to chat_template.jinja beside its tokenizer."
                )
        with _naming("vision", vision):
            config = load_config(vision, **kwargs)
            if not hasattr(config, "patch_size") and not hasattr(config, "vision_config"):
                raise ValueError(f"a model of type '{config.model_type}' has no vision tower.")
            image_processor = AutoImageProcessor.from_pretrained(vision, **kwargs)
            tower = load_checked(AutoModel, vision, **kwargs)
        with _naming("text", text):
            language_model = load_checked(AutoModelForCausalLM, text, **kwargs)
        with _naming("text", f"{text}, with `vision={vision}`"):
            model, processor = compose(language_model, tower, tokenizer, image_processor, seed)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    projector = sum(p.numel() for p in model.model.multi_modal_projector.parameters())
    return (
        f"{out}: a LLaVA of {text} and {vision}; its projector ({readable(projector)} parameters) is untrained. "
        f"Next: evomoe train --model {out} --stages 0 1 2 3 ..."
    )
