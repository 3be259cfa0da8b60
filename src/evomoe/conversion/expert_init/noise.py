"""Copies of the dense FFN with noise on their weights.

Implements: Table 5 (b), Table 14 (a).
"""

from dataclasses import dataclass

import torch
from torch import nn

from evomoe.conversion.expert_init.replicate import replicate
from evomoe.recipe.row_options import InitOptions
from evomoe.support.errors import OptionError


@dataclass(frozen=True)
class NoiseOptions(InitOptions):
    """How large the noise is.

    Attributes:
        std: standard deviation of the noise (Table 14 tries 1e-5 to 1e-1), absolute.
    """

    std: float = 1e-3

    def check(self, given: bool = True) -> None:
        if self.std < 0:
            raise OptionError("std", f"{self.std:g} must not be negative.")


def noise(ffn: nn.Module, num_experts: int, layer: int, generator: torch.Generator, options: NoiseOptions) -> list[nn.Module]:
    """Adds Gaussian noise to every expert but the first."""
    experts = replicate(ffn, num_experts, layer, generator)
    with torch.no_grad():
        for expert in experts[1:]:
            for parameter in expert.parameters():
                drawn = torch.randn(parameter.shape, generator=generator, device="cpu") * options.std
                parameter.add_(drawn.to(parameter))
    return experts
