"""As many experts as it takes to reach a share of the probability (top-p, arXiv 2403.07652).

A baseline beside AnyExperts: an unsure router gives a token more experts.
"""

import torch
from torch import Tensor

from evomoe.modality import Modality
from evomoe.routers.base import GATES, Routing, in_float32
from evomoe.routers.linear import LinearRouter


class TopPRouter(LinearRouter):
    """The smallest set of experts that hold ``p`` of the probability together, at most ``most`` of them.

    ``num_experts_per_tok`` is how many they are expected to be, for the count of activated parameters.

    Args:
        p: share of the probability.
        most: limit of a token's experts; all by default.
    """

    def __init__(self, hidden_size: int, num_experts: int, p: float = 0.4, most: int | None = None) -> None:
        super().__init__(hidden_size, num_experts)
        self.p, self.most = p, num_experts if most is None else most
        if not 0 < p <= 1 or not 1 <= self.most <= num_experts:
            raise ValueError(
                f"router 'top_p': p ({p}) must lie in (0, 1], most ({self.most}) between 1 and num_experts ({num_experts})."
            )

    def check(self, top_k: int, gate: str) -> None:
        if gate == "normalised":
            raise ValueError(
                "router 'top_p': a token that needs one expert would have the weight 1, and its router no gradient; choose --gate "
                "probability or straight_through."
            )

    def route(self, x_TD: Tensor, modality: Modality, top_k: int, gate: str, dropout: float = 0.0) -> Routing:
        """As ``Router.route``; index (T, most), where E means a slot that the token does not have."""
        with in_float32(x_TD):
            logits_TE = self(x_TD.float(), modality)
        probs_TE = self.hide(logits_TE, dropout, 1).softmax(-1)
        chosen_TK, index_TK = probs_TE.topk(self.most, dim=-1)
        # An expert is needed while those before it have not reached p.
        needed_TK = chosen_TK.detach().cumsum(-1) - chosen_TK.detach() < self.p
        chosen_TK, index_TK = chosen_TK * needed_TK, torch.where(needed_TK, index_TK, self.num_experts)
        return Routing(logits_TE, probs_TE, index_TK, GATES[gate](chosen_TK, chosen_TK))
