"""The contract of an auxiliary loss, and what it can see."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from evomoe.modality import Modality
from evomoe.routers.base import Routing


@dataclass(frozen=True)
class LayerRecord:
    """What one MoE layer did in one forward pass.

    Attributes:
        routing: where its tokens went.
        modality: their kinds.
        x_TD: what the layer was given, real tokens only.
        experts: its experts.
    """

    routing: Routing
    modality: Modality
    x_TD: Tensor
    experts: Sequence[nn.Module]


AuxLoss = Callable[[LayerRecord], Tensor]
