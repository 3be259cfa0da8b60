"""Lets a model encode each picture once, though many questions are about it: POPE asks 6 per picture, GQA about 30."""

import functools
import inspect
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput

Features = dict[str, Any]


# The first two are what the decoder reads; the others are left out of what is kept.
_KNOWN_FIELDS = {"pooler_output", "deepstack_features", "last_hidden_state", "hidden_states", "attentions"}


class EncodeOnce:
    """Keeps the features of the latest pictures and hands them to every question about the same picture.

    It stands before the model's own ``get_image_features``, which transformers calls for every family. A picture's share of
    its tensors is known if each of them has a row per picture (LLaVA, SigLIP, Gemma), or if ``image_grid_thw`` says how many
    patches each has (Qwen-VL, GLM-4V). In any other case the model encodes every picture that it is given, as it always does.

    Args:
        model: any vision-language model.
        remembered: of how many pictures features are kept.

    Attributes:
        keys: the pictures of the coming batch, in its order; set before each call of the model.
        encoded: how many pictures the model has encoded.
    """

    def __init__(self, model: PreTrainedModel, remembered: int = 64) -> None:
        self.model, self.remembered = model, remembered
        self.keys: Sequence[str] = ()
        self.encoded = 0
        self._kept: OrderedDict[str, Features] = OrderedDict()

    @contextmanager
    def active(self) -> Iterator["EncodeOnce"]:
        """Within the block, the model encodes each picture once."""
        inner = self.model.base_model
        encode = getattr(inner, "get_image_features", None)
        if encode is None:
            yield self
            return

        @functools.wraps(encode)  # generate() reads the signature to find the arguments
        def get_image_features(*args: Any, **kwargs: Any) -> Any:
            names = inspect.signature(encode).parameters
            return self._features(encode, dict(zip(names, args, strict=False)) | kwargs)

        vars(inner)["get_image_features"] = get_image_features
        try:
            yield self
        finally:
            del vars(inner)["get_image_features"]
            self._kept.clear()

    def _features(self, encode: Any, kwargs: dict[str, Any]) -> Any:
        keys, tensors = self.keys, {name: value for name, value in kwargs.items() if isinstance(value, Tensor)}
        parts = None if not keys else _by_picture(tensors, len(keys))
        if parts is None:
            self.encoded += len(keys)
            return encode(**kwargs)
        fresh = {key: number for number, key in reversed(list(enumerate(keys))) if key not in self._kept}
        chosen = sorted(fresh.values())
        known = {key: self._kept[key] for key in keys if key in self._kept}
        if chosen:
            joined = {name: torch.cat([part[number] for number in chosen]) for name, part in parts.items()}
            self.encoded += len(chosen)
            output = encode(**kwargs | joined)
            split = _split(output, len(chosen))
            if split is None and len(chosen) == len(keys):
                return output
            if split is None:
                self.encoded += len(keys)
                return encode(**kwargs)
            known |= {keys[number]: features for number, features in zip(chosen, split, strict=True)}
        for key in keys:
            self._kept[key] = known[key]
            self._kept.move_to_end(key)
        while len(self._kept) > self.remembered:
            self._kept.popitem(last=False)
        return _join([known[key] for key in keys])


def _by_picture(tensors: dict[str, Tensor], count: int) -> dict[str, Sequence[Tensor]] | None:
    """Each tensor's part for each picture; None if it is not known."""
    grid_N3 = tensors.get("image_grid_thw")
    parts: dict[str, Sequence[Tensor]] = {}
    for name, value in tensors.items():
        if value.ndim and len(value) == count:
            parts[name] = value.split(1)
        elif grid_N3 is not None and len(grid_N3) == count and len(value) == int(grid_N3.prod(-1).sum()):
            parts[name] = value.split(grid_N3.prod(-1).tolist())
        else:
            return None
    return parts


def _split(output: Any, count: int) -> list[Features] | None:
    """The features of each picture, of an output for ``count`` pictures; None if they cannot be told apart."""
    pooled, deep = getattr(output, "pooler_output", None), getattr(output, "deepstack_features", None)
    if not isinstance(output, ModelOutput) or pooled is None or len(pooled) != count:
        return None
    if any(name not in _KNOWN_FIELDS for name, value in output.items() if value is not None):
        return None  # such as Ovis2's visual_indicator_features, of which no picture has a share
    if deep is not None and not all(isinstance(layer, list | tuple) and len(layer) == count for layer in deep):
        return None
    is_known = "pooler_output" in getattr(type(output), "__dataclass_fields__", ())
    return [
        {
            "class": type(output) if is_known else BaseModelOutputWithPooling,
            "stacked": isinstance(pooled, Tensor),
            "pooled": pooled[number],
            "deep": None if deep is None else [layer[number] for layer in deep],
        }
        for number in range(count)
    ]


def _join(features: Sequence[Features]) -> ModelOutput:
    """The model's output for these pictures."""
    first, pooled = features[0], [one["pooled"] for one in features]
    fields: dict[str, Any] = {"pooler_output": torch.stack(pooled) if first["stacked"] else pooled}
    if first["deep"] is not None:
        fields["deepstack_features"] = [[one["deep"][layer] for one in features] for layer in range(len(first["deep"]))]
    return first["class"](**fields)
