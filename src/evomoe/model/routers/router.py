"""What every router shares: from scores to the chosen experts and their weights, step by step.

Implements: Table 5 (d), Table 14 (b).

T tokens, D hidden, E experts, K experts per token.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from evomoe.model.modality import Modality
from evomoe.model.routers.checked_logits import check_logits
from evomoe.model.routers.float32 import in_float32
from evomoe.model.routers.virtual import VirtualExperts
from evomoe.model.routing import GATES, Routing
from evomoe.recipe.router_options import RouterOptions
from evomoe.recipe.row_options import read_options
from evomoe.support.errors import OptionError, within

OwnOptions = TypeVar("OwnOptions", bound=RouterOptions)
"""A router's own options."""


@dataclass(frozen=True)
class Scores:
    """What a router makes of the tokens before it chooses.

    Attributes:
        logits_TE: a score for every expert, float32.
        importance_T, input_scale_T1: as in ``Routing``, of a router that has them.
    """

    logits_TE: Tensor
    importance_T: Tensor | None = None
    input_scale_T1: Tensor | None = None


@dataclass(frozen=True)
class Budgets:
    """What a router that has a budget may be set to, as real experts per token of middling importance.

    Attributes:
        now: what it is set to.
        least, most: between these lies every budget that it may have.
    """

    now: float
    least: float
    most: float


def ratio(weight_TK: Tensor, chosen_TK: Tensor) -> Tensor:
    """What a gate multiplies the probabilities of a token's experts by, (T, 1); 0 where none is left to multiply."""
    return weight_TK.sum(-1, keepdim=True) / chosen_TK.sum(-1, keepdim=True).clamp(min=1e-20)


class Router(nn.Module, Generic[OwnOptions]):
    """Base class. A subclass defines ``forward``; it may override any step of ``route``: score, hide, probabilities, choose, weigh.

    Args:
        hidden_size: D.
        num_experts: E, real ones.
        options: fields of ``Options``.

    Attributes:
        Options: the dataclass of its options, the one that the class is written with: ``Router[DTROptions]``.
        gives: the fields of a ``Routing`` that it fills in beyond the first four.
        adjustable: options that may change after training, for they change no weight's shape.
        float32: names of its buffers that stay in float32 whatever the model's precision.

    Raises:
        OptionError: an option is wrong.
    """

    Options: ClassVar[type[RouterOptions]] = RouterOptions
    gives: ClassVar[tuple[str, ...]] = ()
    adjustable: ClassVar[tuple[str, ...]] = ()
    float32: ClassVar[tuple[str, ...]] = ()

    def __init__(self, hidden_size: int, num_experts: int, **options: Any) -> None:
        super().__init__()
        self.hidden_size, self.num_experts = hidden_size, num_experts
        self.options = cast(OwnOptions, self.read(options, num_experts))

    @classmethod
    def read(cls, values: Mapping[str, Any], num_experts: int, name: str = "") -> RouterOptions:
        """Makes its options of plain values, and checks them; errors call the router ``name``."""
        options = read_options(cls.Options, values, f"router '{name or cls.__name__}'")
        with within("router_options"):
            options.check(num_experts)
        return options

    def forward(self, x_TD: Tensor, modality: Modality) -> Tensor:
        """Scores every expert for every real token: float32 logits (T, E)."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(x_TD, modality) -> logits_TE.")

    def reset_parameters(self) -> None:
        """Draws fresh weights; called at construction and by the model's weight initialisation."""

    def route(self, x_TD: Tensor, modality: Modality, top_k: int, gate: str, dropout: float = 0.0) -> Routing:
        """Chooses experts for each real token.

        Args:
            x_TD: normalised hidden states of the real tokens.
            modality: their kinds.
            top_k: K.
            gate: a name of ``GATES``.
            dropout: Table 14's expert dropout: during training, each expert is hidden from a token with this probability
                (a token that would keep too few experts keeps all).
        """
        with in_float32(x_TD):
            scores = self.score(x_TD.float(), modality)
        check_logits(self, scores.logits_TE, len(x_TD), self.num_experts + len(self.virtual_experts or ()))
        hidden = replace(scores, logits_TE=self.hide(scores.logits_TE, dropout, top_k)) if dropout else scores
        probs_TE = self.probabilities(hidden.logits_TE)
        index_TK, chosen_TK = self.choose(hidden, probs_TE, top_k)
        weight_TK = self.weigh(index_TK, chosen_TK, gate)
        weight_TE = probs_TE * self.per_probability(index_TK, chosen_TK, gate).detach() if self.training else None
        return Routing(
            scores.logits_TE, probs_TE, index_TK, weight_TK, scores.importance_T, scores.input_scale_T1, weight_TE=weight_TE
        )

    def score(self, x_TD: Tensor, modality: Modality) -> Scores:
        """The scores of every expert, and what else the router makes of the tokens."""
        return Scores(self(x_TD, modality))

    def hide(self, logits_TE: Tensor, /, dropout: float, top_k: int) -> Tensor:
        """Expert dropout: in training, the logits of each hidden expert are -inf."""
        if dropout == 0 or not self.training:
            return logits_TE
        keep_TE = torch.rand_like(logits_TE) >= dropout
        keep_TE |= keep_TE.sum(-1, keepdim=True) < self.fewest(top_k)
        return logits_TE.masked_fill(~keep_TE, float("-inf"))

    def fewest(self, top_k: int) -> int:
        """How many experts dropout must leave a token."""
        return top_k

    def probabilities(self, logits_TE: Tensor, /) -> Tensor:
        """Probabilities (T, E) of logits."""
        return logits_TE.softmax(-1)

    def choose(self, scores: Scores, probs_TE: Tensor, /, top_k: int) -> tuple[Tensor, Tensor]:
        """The chosen experts (T, K), best first, and their probabilities (T, K), 0 where a slot has no expert."""
        chosen_TK, index_TK = probs_TE.topk(top_k, dim=-1)
        return index_TK, chosen_TK

    def weigh(self, index_TK: Tensor, chosen_TK: Tensor, gate: str) -> Tensor:
        """What the chosen experts' outputs are multiplied by, (T, K)."""
        return GATES[gate](chosen_TK, chosen_TK)

    def per_probability(self, index_TK: Tensor, chosen_TK: Tensor, gate: str) -> Tensor:
        """The weight of an expert per its probability, chosen or not: (T, 1), or (T, E) where experts differ in it."""
        return ratio(self.weigh(index_TK, chosen_TK, gate), chosen_TK)

    def check(self, top_k: int, gate: str) -> None:
        """Raises OptionError if the router cannot choose so many experts, or weigh them so."""

    @property
    def virtual_experts(self) -> VirtualExperts | None:
        """Its virtual experts, if it has any."""
        return None

    @property
    def importance_network(self) -> nn.Module | None:
        """The part that gives each token its importance (T,), of a router that has one."""
        return None

    def budgets(self, top_k: int) -> Budgets | None:
        """What its budget is and may be; None for a router without one."""
        return None

    def for_experts_per_token(self, number: float) -> dict[str, Any]:
        """The fields of ``MoEConfig`` under which a token gets so many (real) experts without further training.

        Raises:
            OptionError: the router cannot choose so many, or chooses a number of its own.
        """
        if number != int(number):
            raise OptionError("experts_per_token", f"this router chooses a whole number of experts, not {number:g}.")
        return {"num_experts_per_tok": int(number)}

    def set_options(self, options: RouterOptions) -> None:
        """Takes other values of options that are ``adjustable``."""
        self.options = cast(OwnOptions, options)

    def after_step(self) -> None:
        """Called in training after each optimiser step."""

    def after_training(self) -> dict[str, Any]:
        """The options that must change once training has ended."""
        return {}
