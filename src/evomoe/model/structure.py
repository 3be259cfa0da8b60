"""Finds the parts of any Hugging Face VLM by their shape: decoder layers, their FFNs, image tokens, projector, vision tower.

There is no code per model family here. A model that the rules do not fit is refused with the reason.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from torch import nn
from transformers.modeling_utils import PreTrainedModel

Part = Literal["text", "projector", "vision"]

_NOT_AN_FFN = re.compile(r"attn|attention|conv|norm|mixer|mamba|ssm|adapter", re.IGNORECASE)
_PROJECTOR = re.compile(
    r"projector|connector|merger|aligner|multi_modal|(language|vision)_projection|embed_vision|visual_embeddings_table|image_newline",
    re.IGNORECASE,
)
_SPARSE = re.compile(r"experts|(^|_)moe($|_)|^router$", re.IGNORECASE)


class UnsupportedModelError(ValueError):
    """The model cannot become a mixture of experts; the message says why."""


@contextmanager
def named(source: str) -> Iterator[None]:
    """Within the block, an error says which model it is that cannot be converted."""
    try:
        yield
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{source}: {error}") from error


def check_is_model(model: object) -> None:
    """Raises UnsupportedModelError for a folder's name, a processor and whatever else is no model."""
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"{model!r} is not a model of transformers; `AutoModelForImageTextToText.from_pretrained` loads one from a folder or hub name."
        )


def text_config(config):
    """The configuration of the language model inside ``config`` (``config`` itself for a text-only model)."""
    return config.get_text_config(decoder=True)


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
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
    ``hidden_size`` and exactly one back to it (gate/up/down, fc1/fc2, w1/w3/w2, fused gate_up/down). Of several at one depth it
    is the widest: Gemma 3n has a low-rank map beside it. The width is read from the weights, never from the config.

    Raises:
        UnsupportedModelError: the layer is sparse already, has no such submodule, or has two that are equally wide.
    """
    for name, _ in _breadth_first(layer):
        if _SPARSE.search(name.rpartition(".")[2]):
            raise UnsupportedModelError(
                f"{type(layer).__name__} is sparse already (it contains '{name}'). EvoMoE starts from a dense model; "
                "`evomoe attach` gives a sparse one a variable number of experts per token."
            )
    found: dict[str, int] = {}
    for name, module in _breadth_first(layer):
        if found and name.count(".") > next(iter(found)).count("."):
            break
        width = _ffn_width(module, hidden_size)
        if name and width and not any(_NOT_AN_FFN.search(part) for part in name.split(".")):
            found[name] = width
    if not found:
        raise UnsupportedModelError(
            f"{type(layer).__name__} has no FFN submodule (one or two linear maps from {hidden_size} features and one back, "
            "outside attention). Layers whose fc1/fc2 sit directly in the layer, such as OPT's, cannot be converted."
        )
    widest = [name for name, width in found.items() if width == max(found.values())]
    if len(widest) > 1:
        raise UnsupportedModelError(
            f"{type(layer).__name__} has several FFNs of the same width ({', '.join(widest)}); EvoMoE converts layers with one."
        )
    return widest[0]


def find_sparse_ffn(layer: nn.Module, hidden_size: int) -> tuple[str, str] | None:
    """The names, inside a decoder layer that is sparse, of its sparse FFN and, inside that, of its router; None if there is none.

    It is a module with ``experts`` whose weights are stacked, (E, ...) each, and with one other module that owns a weight (E, D).
    """
    for name, module in _breadth_first(layer):
        experts = getattr(module, "experts", None)
        stacked = [*experts.parameters()] if isinstance(experts, nn.Module) and not isinstance(experts, nn.ModuleList) else []
        if not stacked or any(weight.ndim < 2 or len(weight) != len(stacked[0]) for weight in stacked):
            continue
        shape = (len(stacked[0]), hidden_size)
        routers = [n for n, child in module.named_children() if getattr(getattr(child, "weight", None), "shape", None) == shape]
        if name and len(routers) == 1:
            return name, routers[0]
    return None


def _ffn_width(module: nn.Module, hidden_size: int) -> int:
    """The inner width of a module if its own linear maps are those of an FFN, otherwise 0."""
    linears = [child for child in module.children() if isinstance(child, nn.Linear)]
    inward = sum(linear.in_features == hidden_size for linear in linears)
    outward = [linear for linear in linears if linear.out_features == hidden_size]
    square = all(linear.in_features == linear.out_features == hidden_size for linear in linears)
    is_ffn = len(linears) in (2, 3) and (1 <= inward <= 2 and len(outward) == 1 or square)
    return outward[-1].in_features if is_ffn else 0


def ffn_names(model: PreTrainedModel) -> list[str]:
    """The attribute name of the FFN of every decoder layer of a dense model, in order."""
    hidden_size = text_config(model.config).hidden_size
    return [find_ffn(layer, hidden_size) for layer in decoder_layers(model)]


def check_convertible(model: PreTrainedModel) -> list[str]:
    """The FFN of every decoder layer, as ``ffn_names`` gives them, of a dense model that can become a mixture of experts.

    Raises:
        UnsupportedModelError: it cannot; the message says why.
    """
    check_is_model(model)
    name, config = type(model).__name__, model.config
    if config.is_encoder_decoder:
        raise UnsupportedModelError(f"{name} has an encoder and a decoder; EvoMoE converts models with a decoder alone.")
    if not hasattr(text_config(config), "hidden_size"):
        raise UnsupportedModelError(f"{name}: the configuration of its language model names no hidden_size.")
    if quantized := getattr(config, "quantization_config", None):
        method = quantized.get("quant_method") if isinstance(quantized, Mapping) else getattr(quantized, "quant_method", "")
        raise UnsupportedModelError(
            f"{name} has quantized weights ({getattr(method, 'value', method)}), of which no experts can be made or trained. Take the "
            "weights that they were quantized from."
        )
    embedding: Any = model.get_input_embeddings()
    if getattr(getattr(embedding, "weight", None), "ndim", 2) != 2:
        raise UnsupportedModelError(f"{name}: its text_config is no language model's: it has no embedding of tokens.")
    names = ffn_names(model)
    if "vision" in part_of(model).values() and not image_token_ids(config):
        raise UnsupportedModelError(
            f"{name} sees pictures, but its configuration names no image token (image_token_id), so its image tokens cannot be "
            "told from text. If the model has one, set config.image_token_id."
        )
    return names


def module_name(model: nn.Module, module: nn.Module) -> str:
    """The dotted name of ``module`` inside ``model``."""
    return next(name for name, candidate in model.named_modules() if candidate is module)


def image_token_ids(config) -> tuple[int, ...]:
    """Token ids that stand for image or video features in ``input_ids``; empty for a text-only model."""
    ids = (getattr(config, name, None) for name in ("image_token_id", "video_token_id"))
    return tuple(i for i in ids if i is not None)


def part_of(model: PreTrainedModel) -> dict[str, Part]:
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
