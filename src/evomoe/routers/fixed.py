"""Always the same expert: how each expert is scored alone.

Implements: Table 3 (no router).
"""

from functools import cached_property

import torch
from torch import Tensor

from evomoe.modality import Modality
from evomoe.routers.base import Router, Routing


class FixedRouter(Router):
    """Sends every token to ``expert`` with probability 1. It has no parameters.

    Args:
        expert: 0 .. num_experts - 1; expert 0 is the paper's expert 1.

    Raises:
        ValueError: there is no such expert.
    """

    def __init__(self, hidden_size: int, num_experts: int, expert: int = 0) -> None:
        super().__init__(hidden_size, num_experts)
        if not 0 <= expert < num_experts:
            raise ValueError(f"router 'fixed': expert {expert} does not exist; choose 0 to {num_experts - 1}.")
        self.expert = expert

    def forward(self, x_TD: Tensor, modality: Modality) -> Tensor:
        # The lowest finite float32 instead of -inf: its softmax is exactly 0 as well, and products with 0 stay finite.
        logits_TE = torch.full((x_TD.shape[0], self.num_experts), torch.finfo(torch.float32).min, device=x_TD.device)
        logits_TE[:, self.expert] = 0.0
        return logits_TE

    def route(self, x_TD: Tensor, modality: Modality, top_k: int, gate: str, dropout: float = 0.0) -> Routing:
        if top_k > 1:
            return super().route(x_TD, modality, top_k, gate, dropout)
        return FixedRouting.lazily(self, x_TD, modality)


class FixedRouting(Routing):
    """One expert, whatever the gate; there is no other to fall back on, so nothing is dropped.

    Logits and probabilities are made only for those who ask: at one decoded token they would cost more than all else that
    an MoE layer adds to its expert.
    """

    @classmethod
    def lazily(cls, router: FixedRouter, x_TD: Tensor, modality: Modality) -> "FixedRouting":
        routing = cls.__new__(cls)
        index_TK = torch.full((x_TD.shape[0], 1), router.expert, device=x_TD.device)
        weight_TK = torch.ones(x_TD.shape[0], 1, device=x_TD.device)
        vars(routing).update(index_TK=index_TK, weight_TK=weight_TK, _router=router, _inputs=(x_TD, modality))
        return routing

    @cached_property
    def logits_TE(self) -> Tensor:  # pyrefly: ignore[bad-override]
        return self._router(*self._inputs)

    @cached_property
    def probs_TE(self) -> Tensor:  # pyrefly: ignore[bad-override]
        return self.logits_TE.exp()  # the softmax of these logits
