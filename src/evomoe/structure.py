"""Finds the parts of any Hugging Face VLM by their shape: decoder layers, their FFNs, image tokens, projector, vision tower.

There is no code per model family here. A model that the rules do not fit is refused with the reason.
"""

import re
from collections.abc import Iterator
from typing import Literal

from torch import nn

Part = Literal["text", "projector", "vision"]

_NOT_AN_FFN = re.compile(r"attn|attention|conv|norm|mixer", re.IGNORECASE)
_PROJECTOR = re.compile(
    r"projector|connector|merger|aligner|multi_modal|language_projection|embed_vision|visual_embeddings_table|image_newline",
    re.IGNORECASE,
)
_SPARSE = re.compile(r"experts|\bmoe\b|router", re.IGNORECASE)


class UnsupportedModelError(ValueError):
    """The model cannot become a mixture of experts; the message says why."""


def text_config(config):
    """The configuration of the language model inside ``config`` (``config`` itself for a text-only model)."""
    return config.get_text_config(decoder=True)


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The list of decoder layers: the shallowest module list with as many entries as the text config has layers."""
    num_layers = text_config(model.config).num_hidden_layers
    for _, module in _breadth_first(model.get_decoder()):
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return module
    raise UnsupportedModelError(
        f"{type(model).__name__}: found no list of {num_layers} decoder layers. EvoMoE converts decoder-based models only."
    )


def find_ffn(layer: nn.Module, hidden_size: int) -> str:
    """The attribute name, inside a decoder layer, of its FFN.

    The FFN is the shallowest submodule outside attention, convolution and norms that owns one or two linear maps from
    ``hidden_size`` and exactly one back to it (gate/up/down, fc1/fc2, w1/w3/w2, fused gate_up/down). Its inner width is
    read from the weights, never from the config.

    Raises:
        UnsupportedModelError: the layer is sparse already, or has no such submodule.
    """
    for name, _ in _breadth_first(layer):
        if _SPARSE.search(name.rpartition(".")[2]):
            raise UnsupportedModelError(
                f"{type(layer).__name__} is sparse already (it contains '{name}'). EvoMoE starts from a dense model."
            )
    for name, module in _breadth_first(layer):
        if not name or any(_NOT_AN_FFN.search(part) for part in name.split(".")):
            continue
        linears = [child for child in module.children() if isinstance(child, nn.Linear)]
        inward = sum(linear.in_features == hidden_size for linear in linears)
        outward = sum(linear.out_features == hidden_size for linear in linears)
        square = sum(linear.in_features == linear.out_features == hidden_size for linear in linears)
        if len(linears) in (2, 3) and (1 <= inward <= 2 and outward == 1 or square == len(linears)):
            return name
    raise UnsupportedModelError(
        f"{type(layer).__name__} has no FFN submodule (one or two linear maps from {hidden_size} features and one back, outside "
        "attention). Layers whose fc1/fc2 sit directly in the layer, such as OPT's, cannot be converted."
    )


def ffn_names(model: nn.Module) -> list[str]:
    """The attribute name of the FFN of every decoder layer of a dense model, in order."""
    hidden_size = text_config(model.config).hidden_size
    return [find_ffn(layer, hidden_size) for layer in decoder_layers(model)]


def module_name(model: nn.Module, module: nn.Module) -> str:
    """The dotted name of ``module`` inside ``model``."""
    return next(name for name, candidate in model.named_modules() if candidate is module)


def image_token_ids(config) -> tuple[int, ...]:
    """Token ids that stand for image or video features in ``input_ids``; empty for a text-only model."""
    ids = (getattr(config, name, None) for name in ("image_token_id", "video_token_id"))
    return tuple(i for i in ids if i is not None)


def part_of(model: nn.Module) -> dict[str, Part]:
    """Tells for every parameter name whether it belongs to the language model, the projector or the vision tower.

    Language model: decoder, its embeddings and the output head. Of the rest, what a name such as ``multi_modal_projector``,
    ``connector`` or ``merger`` marks is the projector; everything else is the vision tower. A learned line break between
    rows of image tokens and Ovis's table of visual words lie between tower and language model too.
    """
    text = {id(p) for p in model.get_decoder().parameters()}
    for head in (model.get_input_embeddings(), model.get_output_embeddings()):
        text |= {id(p) for p in head.parameters()} if head is not None else set()

    def part(name: str, parameter: nn.Parameter) -> Part:
        if id(parameter) in text:
            return "text"
        return "projector" if _PROJECTOR.search(name) else "vision"

    return {name: part(name, parameter) for name, parameter in model.named_parameters()}


def _breadth_first(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    level = [("", root)]
    while level:
        yield from level
        level = [
            (f"{name}.{child_name}" if name else child_name, child)
            for name, module in level
            for child_name, child in module.named_children()
        ]
