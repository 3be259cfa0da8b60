"""Where the tokens of one MoE layer went, and the gates that weigh the chosen experts.

Implements: Table 11 (top-k).

T tokens, D hidden, E experts, K experts per token. A router may have virtual experts, which are no networks: they are numbered
after the real ones, and E then counts both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evomoe.model.modality import Modality
from evomoe.support.needs import needs

if TYPE_CHECKING:
    from evomoe.model.stacked_experts import AnyExperts  # only a type: experts know nothing of routing

Late = Tensor | Callable[[], Tensor]
"""A tensor, or what makes it once somebody asks."""


@dataclass(frozen=True)
class Routing:
    """Where the tokens of one MoE layer went.

    Attributes:
        logits: ``logits_TE`` (T, E), or what makes them.
        probs: ``probs_TE`` (T, E), or what makes them.
        index_TK: chosen experts, int64. ``E`` and above mean "no expert": such a slot is skipped.
        weight_TK: what each chosen expert's output is multiplied by, float32.
        importance_T: how much each token matters, before the sigmoid, float32, of a router that estimates it.
        input_scale_T1: what the experts' inputs are multiplied by, float32, of a router that does so.
        excess_T: how far a token's number of real experts is from the budget, as a share of it, of a router that has a budget.
        weight_TE: in training, what each expert's output would be multiplied by if it were chosen, with a gradient for its
            probability alone; None of a router that cannot learn from experts that it did not choose.
    """

    logits: Late
    probs: Late
    index_TK: Tensor
    weight_TK: Tensor
    importance_T: Tensor | None = None
    input_scale_T1: Tensor | None = None
    excess_T: Tensor | None = None
    weight_TE: Tensor | None = None

    @property
    def logits_TE(self) -> Tensor:
        """Router scores, float32."""
        return self.logits if isinstance(self.logits, Tensor) else self.logits()

    @property
    def probs_TE(self) -> Tensor:
        """Their softmax, float32, or what else the router makes of them; a token's sum is 1."""
        return self.probs if isinstance(self.probs, Tensor) else self.probs()


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
    experts: "AnyExperts"


def probability(chosen_TK: Tensor, counted_TK: Tensor) -> Tensor:
    """w = p, as in Switch and MoE-LLaVA."""
    return chosen_TK


@needs("two experts")
def normalised(chosen_TK: Tensor, counted_TK: Tensor) -> Tensor:
    """w = p / sum of the chosen p. With one expert per token this is 1, and the router gets no language gradient."""
    return chosen_TK / _sum(counted_TK)


def straight_through(chosen_TK: Tensor, counted_TK: Tensor) -> Tensor:
    """w = p / stop_gradient(sum of the chosen p): normalised in value (1 for K = 1), with the gradient of p alive."""
    return chosen_TK / _sum(counted_TK).detach() if torch.is_grad_enabled() else normalised(chosen_TK, counted_TK)


def _sum(counted_TK: Tensor) -> Tensor:
    # Where an expert that does not count has all the probability, nothing is left for the others: no 0 / 0, and finite gradients.
    return counted_TK.sum(-1, keepdim=True).clamp(min=1e-20)


Gate = Callable[[Tensor, Tensor], Tensor]
"""Weights (T, K) from the chosen experts' probabilities (T, K), and from those of them that the sum is over, else 0.

One that gives a token's only expert no gradient declares ``@needs("two experts")``.
"""

GATES: dict[str, Gate] = {
    "probability": probability,
    "normalised": normalised,
    "straight_through": straight_through,
}
