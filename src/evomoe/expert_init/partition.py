"""Many small experts: each is a share of the dense FFN's inner units.

Not of the paper: fine-grained experts without further parameters.
"""

from copy import deepcopy

import torch
from torch import nn

from evomoe.expert_init.inner_units import linear_maps


def partition(ffn: nn.Module, num_experts: int, layer: int, generator: torch.Generator) -> list[nn.Module]:
    """Slices of the FFN: the mean of all experts' outputs is the FFN's.

    So the layer equals the dense one when every token goes to all experts with equal weights; with fewer, its output is that
    of a part of the FFN, scaled as dropout scales.

    Raises:
        ValueError: the inner units cannot be shared out evenly.
    """
    return [slice_of(ffn, number, num_experts) for number in range(num_experts)]


def slice_of(ffn: nn.Module, number: int, parts: int) -> nn.Module:
    """The ``number``-th of so many equal slices of an FFN; what leads back is multiplied by ``parts``."""
    expert = deepcopy(ffn)
    maps = linear_maps(expert)
    width = maps.width // parts
    if width * parts != maps.width:
        raise ValueError(
            f"expert init 'partition': an FFN of {maps.width} inner units cannot be cut into {parts} equal experts; choose a number "
            "of experts that divides it."
        )
    units_N = torch.arange(number * width, (number + 1) * width)
    with torch.no_grad():
        for linear in maps.inward:
            rows = maps.rows(linear, units_N)
            _replace(linear, "weight", linear.weight[rows])
            if linear.bias is not None:
                _replace(linear, "bias", linear.bias[rows])
        _replace(maps.back, "weight", maps.back.weight[:, units_N.to(maps.back.weight.device)] * parts)
    for linear in maps.inward:
        linear.out_features = linear.weight.shape[0]
    maps.back.in_features = width
    return expert


def _replace(linear: nn.Linear, name: str, value: torch.Tensor) -> None:
    setattr(linear, name, nn.Parameter(value.contiguous(), requires_grad=getattr(linear, name).requires_grad))
