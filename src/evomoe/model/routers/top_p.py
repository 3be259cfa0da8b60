"""As many experts as it takes to reach a share of the probability (top-p, arXiv 2403.07652).

A baseline beside AnyExperts: an unsure router gives a token more experts.
"""

from typing import Any

import torch
from torch import Tensor

from evomoe.model.routers.linear import LinearRouter
from evomoe.model.routers.router import Scores
from evomoe.model.routing import GATES
from evomoe.recipe.router_options import TopPOptions
from evomoe.support.errors import OptionError
from evomoe.support.needs import needs_of


class TopPRouter(LinearRouter[TopPOptions]):
    """The smallest set of experts that hold ``p`` of the probability together, at most ``most`` of them.

    ``num_experts_per_tok`` is how many they are expected to be, for the count of activated parameters.
    """

    Options = TopPOptions

    def check(self, top_k: int, gate: str) -> None:
        if needs_of(GATES[gate]):
            raise OptionError(
                "gate",
                f"with router 'top_p' and '{gate}' a token that needs one expert would have the weight 1, and its router no "
                "gradient; choose `gate=probability` or `gate=straight_through`.",
            )

    def fewest(self, top_k: int) -> int:
        return 1

    def choose(self, scores: Scores, probs_TE: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        """As ``Router.choose``; index (T, most), where E means a slot that the token does not have."""
        chosen_TK, index_TK = probs_TE.topk(self.options.most or self.num_experts, dim=-1)
        # An expert is needed while those before it have not reached p.
        is_needed_TK = chosen_TK.detach().cumsum(-1) - chosen_TK.detach() < self.options.p
        return torch.where(is_needed_TK, index_TK, self.num_experts), chosen_TK * is_needed_TK

    def for_experts_per_token(self, number: float) -> dict[str, Any]:
        raise OptionError(
            "experts_per_token", "router 'top_p' does not choose a number of experts that can be set: each token has its own."
        )
