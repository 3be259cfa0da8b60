"""Any router whose outputs are permuted at evaluation: does it matter which expert a token gets?

Implements: Table 10 (router).
"""

from dataclasses import replace

import torch
from torch import Tensor

from evomoe.modality import Modality
from evomoe.routers.base import Router, Routing
from evomoe.routers.virtual import VirtualExperts


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

    @property
    def virtual_experts(self) -> VirtualExperts | None:
        return self.inner.virtual_experts

    def check(self, top_k: int, gate: str) -> None:
        self.inner.check(top_k, gate)

    def after_step(self) -> None:
        self.inner.after_step()

    def forward(self, x_TD: Tensor, modality: Modality) -> Tensor:
        return self._permuted(self.inner(x_TD, modality))

    def route(self, x_TD: Tensor, modality: Modality, top_k: int, gate: str, dropout: float = 0.0) -> Routing:
        """As the inner router; in evaluation mode each real expert's tokens go to another one. Virtual experts keep theirs."""
        routing = self.inner.route(x_TD, modality, top_k, gate, dropout)
        if self.training:
            return routing
        index_TK, place_of_E = routing.index_TK, torch.tensor(self.permutation, device=routing.index_TK.device).argsort()
        moved_TK = place_of_E[index_TK.clamp(max=self.num_experts - 1)]
        return replace(
            routing,
            logits_TE=self._permuted(routing.logits_TE),
            probs_TE=self._permuted(routing.probs_TE),
            index_TK=torch.where(index_TK < self.num_experts, moved_TK, index_TK),
        )

    def _permuted(self, values_TE: Tensor) -> Tensor:
        rest = range(self.num_experts, values_TE.shape[1])
        return values_TE if self.training else values_TE[:, [*self.permutation, *rest]]
