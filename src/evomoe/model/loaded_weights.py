"""The weights of a loaded model are those that were in its folder: none is missing, of another shape, or not a number."""

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from transformers.modeling_utils import PreTrainedModel

from evomoe.model.generation_settings import load_settings, make_model_savable
from evomoe.support.allow_missing import ALLOW_MISSING
from evomoe.support.names import own_files
from evomoe.support.parse_json import parse_json
from evomoe.support.text import counted

if TYPE_CHECKING:
    _Model = PreTrainedModel
else:
    _Model = object  # the family's class stands behind, and is a PreTrainedModel

logger = logging.getLogger(__name__)

_ANY_LAYER = re.compile(r"\.\d+\.")
"""The number of a layer or an expert in a tensor's name."""
_ROUTER = ".router."
"""In the name of each tensor of a router."""
_READ_LOADING: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
_IN_ORDER = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""The file that transformers reads first is the first of these that is there."""
_POINTER = b"version https://git-lfs"
_CHECKED = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Checked(_Model):
    """An EvoMoE whose ``from_pretrained`` refuses what transformers would fill in with random numbers."""

    @classmethod
    def from_pretrained(cls, source: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As transformers has it.

        Raises:
            ValueError: weights are missing, of another shape, or not finite.
        """
        own: Any = super()
        check_stored(source)
        model, found = own.from_pretrained(source, *args, **kwargs | _READ_LOADING)
        check_weights(model, found, str(source))
        make_model_savable(model, str(source))
        return (model, found) if output_loading_info else model


def load_checked(auto: Any, source: Any, **kwargs: Any) -> PreTrainedModel:
    """Loads a model through an auto class.

    Raises:
        ValueError: weights are missing, of another shape, or not finite.
    """
    load_settings(source)  # whose errors do not name the file
    check_stored(source)
    model, found = auto.from_pretrained(source, **kwargs | _READ_LOADING)
    if not isinstance(model, Checked):  # which has checked itself
        check_weights(model, found, str(source))
        make_model_savable(model, str(source))
    return model


def check_stored(source: Any) -> None:
    """Raises ValueError if a folder's weights are stored as what no weights are, which would be cast without a word.

    A model whose config.json has a quantization_config may store integers.
    """
    folder, config = Path(source), Path(source) / "config.json"
    first = next((file for name in _IN_ORDER if (file := folder / name).is_file()), None)
    if first is not None and first.suffix == ".json":
        _check_index(first)
    if not config.is_file() or "quantization_config" in config.read_text(encoding="utf-8", errors="replace"):
        return
    for file in own_files(folder, "*.safetensors"):
        with file.open("rb") as opened:
            if opened.read(len(_POINTER)) == _POINTER:
                raise ValueError(f"{file}: only its Git LFS pointer is here, not the weights; fetch them with `git lfs pull`.")
        with safe_open(file, framework="pt") as tensors:
            for name in [*tensors.keys()]:
                kind = tensors.get_slice(name).get_dtype()
                if name.endswith(".weight") and not kind.startswith(("F", "BF")):
                    raise ValueError(f"{source}: {name} has values of type {kind}; weights are floating-point numbers.")


def _check_index(index: Path) -> None:
    """Raises ValueError for a table of shards that names anything but files beside it: what it names is read whole."""
    values = parse_json(index.read_text(encoding="utf-8"), str(index))
    shards = values.get("weight_map") if isinstance(values, dict) else None
    named = isinstance(shards, dict) and all(isinstance(shard, str) for shard in shards.values())
    if not named or not isinstance(values.get("metadata"), dict):  # without which transformers fails
        raise ValueError(
            f"{index}: it must hold 'metadata', and a 'weight_map' that names a file for each tensor; fetch it again."
        )
    for name, shard in shards.items():
        if Path(shard).name != shard or not (index.parent / shard).is_file():
            raise ValueError(f"{index}: {name} is to lie in {shard!r}, and there is no such file beside it; fetch it again.")


def check_weights(model: PreTrainedModel, found: Mapping[str, Any], source: str) -> None:
    """Raises ValueError with the first tensor's name if a model's weights are not all from its folder, or not all finite.

    Args:
        found: transformers' report of loading.
        source: folder or hub name.
    """
    shapes = [
        f"{name} is {(*there,)}, and the model's is {(*wanted,)}" for name, there, wanted in sorted(found["mismatched_keys"])
    ]
    extra, missing = sorted(found["unexpected_keys"]), sorted(found["missing_keys"])
    wrong_shape = sorted(name for name, *_ in found["mismatched_keys"])
    if (wrong_shape or os.environ.get(ALLOW_MISSING) != "1") and _is_of_another_router(model, missing + wrong_shape, extra):
        first, wrong = next(
            (names[0], wrong)
            for names, wrong in (
                (missing, "is not in it"),
                (wrong_shape, "is of another shape in it"),
                (extra, "is there besides"),
            )
            if names
        )
        raise ValueError(
            f"{source}: the router '{model.config.moe.router}' registered now is another than the one it was trained with: {first} {wrong}. "
            "Import the file that registered that one, and no other router of this name."
        )
    if shapes:
        raise ValueError(f"{source}: {counted(len(shapes), 'tensor')} of another shape than its config.json says: {shapes[0]}.")
    alike = {_ANY_LAYER.sub(".N.", name) for name in model.state_dict()}
    further = [name for name in extra if _ANY_LAYER.search(name) and _ANY_LAYER.sub(".N.", name) in alike]
    if further and os.environ.get(ALLOW_MISSING) != "1":
        raise ValueError(
            f"{source}: {counted(len(further), 'tensor')} of layers or experts that its config.json does not know, e.g. {further[0]}; the model "
            "would do without. Mend the number in config.json; if you know that they do not matter, add `--allow-missing-weights`, or set "
            f"{ALLOW_MISSING}=1 in Python."
        )
    if extra:
        logger.warning("%s: %s that this model has no place for, e.g. %s.", source, counted(len(extra), "tensor"), extra[0])
    if missing and os.environ.get(ALLOW_MISSING) != "1":
        raise ValueError(
            f"{source}: {counted(len(missing), 'tensor')} of the model {'is' if len(missing) == 1 else 'are'} not in it, e.g. "
            f"{missing[0]}; random numbers would stand there. If you know that they do not matter, add `--allow-missing-weights`, or set "
            f"{ALLOW_MISSING}=1 in Python."
        )
    for name, parameter in model.named_parameters():
        if parameter.dtype in _CHECKED and not parameter.is_meta and not bool(torch.isfinite(parameter).all()):
            raise ValueError(
                f"{source}: {name} has values that are not finite (NaN or infinity); its training diverged, or it is damaged."
            )


def _is_of_another_router(model: PreTrainedModel, lacking: list[str], extra: list[str]) -> bool:
    """Whether what does not fit is a router's alone, and not for a file that was cut: that lacks tensors and has none besides."""
    if not isinstance(model, Checked) or not all(_ROUTER in name for name in lacking + extra):
        return False
    kinds = {type(module).__module__ for name, module in model.named_modules() if f"{name}.".endswith(_ROUTER)}
    ours = all(kind.startswith("evomoe.") for kind in kinds)
    return bool(extra or (lacking and not ours))
