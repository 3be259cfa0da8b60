"""Always the same expert: how each expert is scored alone.

Implements: Table 3 (no router).
"""

from typing import Any

import torch
from torch import Tensor

from evomoe.model.modality import Modality
from evomoe.model.routers.router import Router
from evomoe.model.routing import Routing
from evomoe.recipe.router_options import FixedOptions
from evomoe.support.errors import OptionError


class FixedRouter(Router[FixedOptions]):
    """Sends every token to ``expert`` with probability 1. It has no parameters."""

    Options = FixedOptions

    def forward(self, x_TD: Tensor, modality: Modality) -> Tensor:
        # The lowest finite float32 instead of -inf: its softmax is exactly 0 as well, and products with 0 stay finite.
        logits_TE = torch.full((x_TD.shape[0], self.num_experts), torch.finfo(torch.float32).min, device=x_TD.device)
        logits_TE[:, self.options.expert] = 0.0
        return logits_TE

    def route(self, x_TD: Tensor, modality: Modality, top_k: int, gate: str, dropout: float = 0.0) -> Routing:
        """As ``Router.route``; one expert has the weight 1 whatever the gate, and nothing is dropped: no other could take its place.

        Logits and probabilities are made only for those who ask: at one decoded token they would cost more than all else
        that an MoE layer adds to its expert.
        """
        if top_k > 1:
            return super().route(x_TD, modality, top_k, gate, dropout)
        index_TK = torch.full((x_TD.shape[0], 1), self.options.expert, device=x_TD.device)
        weight_TK = torch.ones(x_TD.shape[0], 1, device=x_TD.device)
        # The softmax of these logits is their exponential.
        return Routing(lambda: self(x_TD, modality), lambda: self(x_TD, modality).exp(), index_TK, weight_TK)

    def for_experts_per_token(self, number: float) -> dict[str, Any]:
        raise OptionError("experts_per_token", "router 'fixed' does not choose a number of experts that can be set.")
