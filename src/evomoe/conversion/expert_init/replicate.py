"""Every expert is a copy of the dense FFN.

Implements: Table 5 (a), Table 2 (replicated experts).
"""

from copy import deepcopy

import torch
from torch import nn

from evomoe.recipe.row_options import InitOptions


def replicate(
    ffn: nn.Module, num_experts: int, layer: int, generator: torch.Generator, options: InitOptions | None = None
) -> list[nn.Module]:
    """The FFN and ``num_experts - 1`` copies of it."""
    return [ffn, *(deepcopy(ffn) for _ in range(num_experts - 1))]
