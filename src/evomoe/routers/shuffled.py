"""Any router whose outputs are permuted at evaluation: does it matter which expert a token gets?

Implements: Table 10 (router).
"""

import torch
from torch import Tensor

from evomoe.modality import Modality
from evomoe.routers.base import Router


class ShuffledRouter(Router):
    """Wraps another router and hands its logits to the experts in a permuted order, in evaluation mode only.

    Args:
        inner: name of the router in ``ROUTERS``, or a router.
        seed: draws the permutation; every seed gives a permutation other than the identity.
        kwargs: for the inner router.
    """

    def __init__(self, hidden_size: int, num_experts: int, inner: str | Router = "dtr", seed: int = 0, **kwargs) -> None:
        super().__init__(hidden_size, num_experts)
        if isinstance(inner, str):
            from evomoe.routers import ROUTERS  # the table imports this file

            if inner not in ROUTERS:
                raise ValueError(f"router 'shuffled': there is no inner router '{inner}'; choose from {', '.join(ROUTERS)}.")
            inner = ROUTERS[inner](hidden_size, num_experts, **kwargs)
        self.inner = inner
        generator = torch.Generator("cpu").manual_seed(seed)
        identity = list(range(num_experts))
        permutation = identity
        while permutation == identity:
            permutation = torch.randperm(num_experts, generator=generator, device="cpu").tolist()
        self.permutation: list[int] = permutation

    def forward(self, x_TD: Tensor, modality: Modality) -> Tensor:
        logits_TE = self.inner(x_TD, modality)
        return logits_TE if self.training else logits_TE[:, self.permutation]
