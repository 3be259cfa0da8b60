"""Where the inner units of an FFN are in its linear maps, whatever its class."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


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
