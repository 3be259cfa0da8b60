"""Any router plus a linear one shared by the modalities, weighted against each other.

Implements: Table 4 (c), Table 4 (d), Figure 4 (c), Figure 4 (d).
"""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from evomoe.modality import Modality
from evomoe.routers.base import Router
from evomoe.routers.linear import LinearRouter


class SharedRouter(Router):
    """logits = (1 - s) * own logits + s * shared logits, with a learned s = sigmoid(mix) that starts at 1/2.

    The paper says "weighted shared router" and gives no formula; the weighting is this project's reading.
    """

    def __init__(self, own: Router, hidden_size: int, num_experts: int) -> None:
        super().__init__(hidden_size, num_experts)
        self.own, self.shared = own, LinearRouter(hidden_size, num_experts)
        self.mix = nn.Parameter(torch.zeros(()))

    @classmethod
    def around(cls, own_class: Callable[..., Router]) -> Callable[..., "SharedRouter"]:
        """The constructor of a shared router around ``own_class``; keyword arguments go to the latter."""

        def build(hidden_size: int, num_experts: int, **kwargs) -> "SharedRouter":
            return cls(own_class(hidden_size, num_experts, **kwargs), hidden_size, num_experts)

        build.__signature__ = inspect.signature(own_class)  # whose options it takes
        build.__doc__ = f"{own_class.__name__} mixed with a linear router that both modalities share, by a learned weight."
        return build

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.mix)

    def forward(self, x_TD: Tensor, modality: Modality) -> Tensor:
        share = self.mix.float().sigmoid()
        return (1 - share) * self.own(x_TD, modality) + share * self.shared(x_TD, modality)
