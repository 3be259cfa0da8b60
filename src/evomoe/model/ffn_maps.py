"""Where the inner units of an FFN are in its linear maps, whatever its class, and slices of them."""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evomoe.support.errors import OptionError


@dataclass(frozen=True)
class LinearMaps:
    """An FFN's linear maps; F inner units.

    Attributes:
        inward: the maps that lead to the inner units. A fused gate_up map holds them more than once.
        back: the map that leads back.
    """

    inward: list[nn.Linear]
    back: nn.Linear

    @property
    def width(self) -> int:
        """F."""
        return self.back.in_features

    def rows(self, linear: nn.Linear, units_N: Tensor) -> Tensor:
        """The rows of an inward map that belong to these units."""
        parts = linear.out_features // self.width
        return torch.cat([units_N + part * self.width for part in range(parts)]).to(linear.weight.device)


def linear_maps(ffn: nn.Module) -> LinearMaps:
    """The first map leads inward; the one that takes another width than the first leads back."""
    linears = [module for module in ffn.modules() if isinstance(module, nn.Linear)]
    back = next((linear for linear in linears if linear.in_features != linears[0].in_features), linears[-1])
    return LinearMaps([linear for linear in linears if linear is not back], back)


def slice_of(ffn: nn.Module, number: int, parts: int) -> nn.Module:
    """The ``number``-th of so many equal slices of an FFN; what leads back is multiplied by ``parts``.

    Raises:
        OptionError: the inner units cannot be shared out evenly.
    """
    expert = deepcopy(ffn)
    maps = linear_maps(expert)
    width = maps.width // parts
    if width * parts != maps.width:
        raise OptionError(
            "num_experts",
            f"an FFN of {maps.width} inner units cannot be cut into {parts} equal experts; choose a number that divides it.",
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
