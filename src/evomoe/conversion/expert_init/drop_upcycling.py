"""Drop-Upcycling (arXiv 2502.19261): part of each expert's inner width is drawn anew.

A baseline beside the paper's own initialisers.
"""

from dataclasses import dataclass

import torch
from torch import nn

from evomoe.conversion.expert_init.replicate import replicate
from evomoe.model.ffn_maps import linear_maps
from evomoe.recipe.row_options import InitOptions
from evomoe.support.errors import OptionError


@dataclass(frozen=True)
class DropUpcyclingOptions(InitOptions):
    """How much is drawn anew.

    Attributes:
        ratio: share of the inner width, 0 to 1.
    """

    ratio: float = 0.5

    def check(self, given: bool = True) -> None:
        if not 0 <= self.ratio <= 1:
            raise OptionError("ratio", f"{self.ratio:g} must lie in [0, 1].")


def drop_upcycling(
    ffn: nn.Module, num_experts: int, layer: int, generator: torch.Generator, options: DropUpcyclingOptions
) -> list[nn.Module]:
    """Re-draws, in every expert, the same random share of inner units in all its linear maps.

    The new values are normal with the mean and the standard deviation that the dropped values had. The first expert is
    re-drawn too: the point of the method is that no expert stays dense.
    """
    # Copies only: the dense FFN itself stays whole until the whole model is converted.
    experts = replicate(ffn, num_experts + 1, layer, generator)[1:]
    with torch.no_grad():
        for expert in experts:
            maps = linear_maps(expert)
            count = round(options.ratio * maps.width)
            units_N = torch.randperm(maps.width, generator=generator, device="cpu")[:count]
            if count == 0:
                continue
            for linear in maps.inward:
                rows = maps.rows(linear, units_N)
                _redraw(linear.weight, rows, 0, generator)
                if linear.bias is not None:
                    _redraw(linear.bias, rows, 0, generator)
            _redraw(maps.back.weight, units_N.to(maps.back.weight.device), 1, generator)
    return experts


def _redraw(tensor: torch.Tensor, index: torch.Tensor, dim: int, generator: torch.Generator) -> None:
    old = tensor.index_select(dim, index).float()
    drawn = torch.randn(old.shape, generator=generator, device="cpu").to(old.device)
    tensor.index_copy_(dim, index, (old.mean() + old.std(correction=0) * drawn).to(tensor.dtype))
