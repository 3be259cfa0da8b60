"""Which device computes: one answer for training, evaluation, analysis, demo and benchmarks."""

import os
import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

if TYPE_CHECKING:
    from transformers.modeling_utils import PreTrainedModel

Model = TypeVar("Model", bound=nn.Module)


def best_device() -> torch.device:
    """The accelerator that torch reports (CUDA, XPU, MPS ...), or the CPU if there is none."""
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None
    return torch.device(accelerator.type)


def prepare(device: torch.device) -> None:
    """Lets a CPU take tiny numbers for zero: without that, steps become several times slower as weights settle."""
    if device.type == "cpu":
        torch.set_flush_denormal(True)


def moved(model: Model, *where: Any) -> Model:
    """``model.to(*where)``, which type checkers misread of transformers' models: their method is wrapped."""
    return model.to(*where)


def placed(inputs: Mapping[str, Any], model: "PreTrainedModel") -> dict[str, Any]:
    """What a processor or a tokenizer gives, where a model is, and what is not whole numbers in its precision."""
    own = model.dtype
    return tree_map_only(Tensor, lambda t: t.to(model.device, own if t.is_floating_point() else t.dtype), dict(inputs))


def device_memory(device: torch.device | None = None) -> int | None:
    """Bytes of memory of a device, in use or not; of the best one if none is named. None where the system does not say."""
    device = best_device() if device is None else device
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    if device.type != "cpu" or "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def device_name(device: torch.device | None = None) -> str:
    """What a person calls a device: the GPU's name, or the kind of processor. Without one named, the best device."""
    device = best_device() if device is None else device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.machine() if device.type == "cpu" else device.type.upper()
