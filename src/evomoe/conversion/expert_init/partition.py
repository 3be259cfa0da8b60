"""Many small experts: each is a share of the dense FFN's inner units.

Not of the paper: fine-grained experts without further parameters.
"""

import torch
from torch import nn

from evomoe.model.ffn_maps import slice_of
from evomoe.recipe.row_options import InitOptions


def partition(
    ffn: nn.Module, num_experts: int, layer: int, generator: torch.Generator, options: InitOptions | None = None
) -> list[nn.Module]:
    """Slices of the FFN: the mean of all experts' outputs is the FFN's.

    So the layer equals the dense one when every token goes to all experts with equal weights; with fewer, its output is that
    of a part of the FFN, scaled as dropout scales.

    Raises:
        OptionError: the inner units cannot be shared out evenly.
    """
    return [slice_of(ffn, number, num_experts) for number in range(num_experts)]
