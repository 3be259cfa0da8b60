"""Copies of the dense FFN with noise on their weights.

Implements: Table 5 (b), Table 14 (a).
"""

import torch
from torch import nn

from evomoe.expert_init.replicate import replicate


def noise(ffn: nn.Module, num_experts: int, layer: int, generator: torch.Generator, std: float = 1e-3) -> list[nn.Module]:
    """Adds Gaussian noise to every expert but the first.

    Args:
        std: standard deviation of the noise (Table 14 tries 1e-5 to 1e-1), absolute.

    Raises:
        ValueError: ``std`` is negative.
    """
    if std < 0:
        raise ValueError(f"expert init 'noise': std must not be negative, got {std}.")
    experts = replicate(ffn, num_experts, layer, generator)
    with torch.no_grad():
        for expert in experts[1:]:
            for parameter in expert.parameters():
                drawn = torch.randn(parameter.shape, generator=generator, device="cpu") * std
                parameter.add_(drawn.to(parameter))
    return experts
