"""The contract of an expert initialiser."""

from typing import Protocol

import torch
from torch import nn


class ExpertInit(Protocol):
    """Turns the dense FFN of one layer into its experts.

    Args:
        ffn: the dense FFN, which becomes expert 0 itself (no copy), so that memory grows by the new experts only.
        num_experts: E.
        layer: index of the decoder layer.
        generator: CPU generator, seeded once per model; layers draw in order.
        options: what the user passed in ``init_options``.

    Returns:
        E modules of the FFN's class.
    """

    def __call__(
        self, ffn: nn.Module, num_experts: int, layer: int, generator: torch.Generator, **options
    ) -> list[nn.Module]: ...
