"""Whether a processor makes as much room for a picture as its model makes features of it, found without the model's weights.

S tokens of a text.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers.modeling_utils import PreTrainedModel

from evomoe.support.errors import foreign, panics_as_errors
from evomoe.support.processor import Processor
from evomoe.support.text import counted, shortened

_SIDE = 64
"""Pixels of each side of the picture: few to most processors, though some make it larger, and then cut it into tiles."""
_SMALL = 10**6
"""Numbers of a tensor up to which it is really made."""
_OF_PROCESSOR = ("patch_size", "image_size", "image_seq_length", "num_additional_image_tokens", "vision_feature_select_strategy")
_OF_IMAGES = ("size", "crop_size", "patch_size", "merge_size", "max_image_size")
_OF_MODEL = ("vision_feature_select_strategy", "vision_feature_layer", "downsample_ratio", "scale_factor", "image_seq_length")
_OF_TOWER = ("image_size", "patch_size", "spatial_merge_size", "num_channels")
_OF_TOKENS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
_aten = torch.ops.aten
_PRODUCTS = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.baddbmm.default,
    _aten.convolution.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def check_picture_tokens(processor: Processor, model: PreTrainedModel, source: str | Path) -> None:
    """Lets the processor prepare one blank picture, and counts its image tokens and the features that the model makes of it.

    A family that cannot be asked for its features, or not with what this processor makes, is shown the picture with a text instead.

    Args:
        processor: of the model.
        model: with or without weights; they are not looked at.
        source: the folder or hub name of both, for messages.

    Raises:
        ValueError: the counts differ, the model knows the image token under another number, it takes no such pixels, or the
            processor takes no picture at all.
    """
    token, config = str(getattr(processor, "image_token", "")), model.config
    if not token or getattr(processor, "image_processor", None) is None or not hasattr(config, "image_token_id"):
        return
    own: Any = config.image_token_id
    if own is None:
        raise ValueError(f"{source}: its config.json names no image_token_id; its processor writes a picture as {token!r}.")
    try:
        with panics_as_errors():
            made = dict(processor(text=[token], images=[[Image.new("RGB", (_SIDE, _SIDE))]], return_tensors="pt"))
        ids_S = made["input_ids"][0]
    except Exception as error:  # each processor has its own ways to fail
        raise ValueError(
            f"{source}: its processor cannot process a picture of {_SIDE} x {_SIDE} pixels: {_reason(error)}. Take the model's own "
            "processor, or mend its processor_config.json or preprocessor_config.json."
        ) from error
    tokens = int((ids_S == own).sum())
    if not tokens:
        raise ValueError(
            f"{source}: its processor writes a picture as {token!r}, number {_number(processor, token)}, and its config.json has "
            f"image_token_id {own}. Take the model's own processor and tokenizer."
        )
    inputs = {name: value for name, value in made.items() if isinstance(value, Tensor)}
    pictures = {name: value for name, value in inputs.items() if name not in _OF_TOKENS}
    try:
        try:
            features = count_features(model, pictures)
        except (TypeError, AttributeError, NotImplementedError):  # such a family shows the picture with its text alone
            _without_weights(model, "forward", inputs | {"use_cache": False})
            return
    except NotImplementedError:  # an operation that shapes alone do not tell
        return
    except Exception as error:
        raise ValueError(
            f"{source}: its model cannot take what its processor makes of a picture ({', '.join(pictures) or 'nothing'}): "
            f"{_reason(error)}. {_told(processor, model)}"
        ) from error
    if features != tokens:
        raise ValueError(
            f"{source}: its processor makes {counted(tokens, 'image token')} of a picture, and its model makes "
            f"{counted(features, 'feature')} of it. {_told(processor, model)}"
        )


def count_features(model: PreTrainedModel, pictures: dict[str, Any]) -> int:
    """How many features of the language model's width a model makes of pictures, as its forward would count them.

    Args:
        pictures: what its processor makes of them.

    Raises:
        Exception: whatever the model raises for pixels of a wrong shape.
    """
    made = _without_weights(model, "get_image_features", pictures)
    found = getattr(made, "pooler_output", None)
    leaves = tree_leaves(made if found is None else found)
    return sum(leaf.numel() // leaf.shape[-1] for leaf in leaves if isinstance(leaf, Tensor))


def _without_weights(model: PreTrainedModel, method: str, inputs: dict[str, Any]) -> Any:
    """What a method of a model gives for inputs, in shapes; its numbers mean nothing."""
    asked = _Asked(model, method)
    tensors = {name: _blank(tensor) for name, tensor in (*asked.named_parameters(), *asked.named_buffers())}
    with torch.no_grad(), _WithoutProducts(), _first_of_alike(asked):
        return functional_call(asked, tensors, (), inputs)


class _Asked(nn.Module):
    def __init__(self, model: PreTrainedModel, method: str) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, **inputs: Any) -> Any:
        return getattr(self.model, self.method)(**inputs)


@contextmanager
def _first_of_alike(model: nn.Module) -> Iterator[None]:
    """In the block a layer gives what one of the same shape in its stack gave for inputs of the same shape: sizes alone count."""
    given: dict[Any, Any] = {}

    def once(stack: nn.ModuleList, layer: nn.Module, own: Callable[..., Any]) -> Callable[..., Any]:
        weights = tuple(parameter.shape for parameter in layer.parameters())

        def forward(*args: Any, **kwargs: Any) -> Any:
            shapes = tuple((leaf.shape, leaf.dtype) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
            key = (id(stack), type(layer), weights, shapes)
            if key not in given:
                given[key] = own(*args, **kwargs)
            return given[key]

        return forward

    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    for stack in stacks:
        for layer in stack:
            vars(layer)["forward"] = once(stack, layer, layer.forward)
    try:
        yield
    finally:
        for stack in stacks:
            for layer in stack:
                vars(layer).pop("forward", None)


class _WithoutProducts(TorchDispatchMode):
    """What costs most, products of matrices, convolutions and attention, gives zeros; all else is done, so that sizes are right."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func not in _PRODUCTS:
            return func(*args, **kwargs or {})
        args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs or {}))
        shaped = func(*args, **kwargs)
        return tree_map_only(Tensor, lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype), shaped)


def _blank(tensor: Tensor) -> Tensor:
    """Zeros of a tensor's shape; of a large one, one zero that is seen everywhere."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return torch.zeros(tensor.shape if tensor.numel() <= _SMALL else (), dtype=dtype, device="cpu").expand(tensor.shape)


def _reason(error: Exception) -> str:
    return shortened(foreign(error).rstrip("."), 200)


def _number(processor: Any, token: str) -> int:
    return processor.tokenizer.convert_tokens_to_ids(token)


def _told(processor: Any, model: PreTrainedModel) -> str:
    """What processor and configuration say of pictures, of which something is wrong."""
    config: Any = model.config
    tower = getattr(config, "vision_config", None)
    of_processor = [*_values(processor, _OF_PROCESSOR), *_values(processor.image_processor, _OF_IMAGES)]
    of_model = [*_values(config, _OF_MODEL), *(f"vision_config.{told}" for told in _values(tower, _OF_TOWER))]
    return (
        f"The processor has {', '.join(of_processor) or 'no sizes'}; config.json has {', '.join(of_model) or 'no sizes'}. "
        "Take the model's own processor, or make them agree."
    )


def _values(owner: object, names: tuple[str, ...]) -> list[str]:
    return [f"{name} {_plain(value)}" for name in names if (value := getattr(owner, name, None)) is not None]


def _plain(value: Any) -> str:
    sides = {**value} if isinstance(value, Mapping) else getattr(value, "__dict__", None)
    if sides is None:
        return str(value)
    return " ".join(f"{side} {length}" for side, length in sides.items() if length is not None)
