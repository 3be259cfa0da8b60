"""AnyExperts: how many experts a token gets follows its importance, and some of its slots may go to virtual experts.

Published as an abstract (arXiv 2511.18314) without code; where it is silent, this is this project's reading.

T tokens, D hidden, R real and V virtual experts, N = R + V, K slots at most.

    s_t = MLP(RMSNorm(h_t)),  w_t = sigmoid(s_t)        importance, 1/2 at the start
    h'_t = (1 + alpha_f w_t) h_t                        what gate and experts are given
    K_t = round(k_min + (k_max - k_min) w_t)            slots
    g_t = W_g h'_t;  lam (2 w_t - 1) is added to the real experts' scores and taken from the virtual ones'
    S_t = the K_t best slots of which at most min(floor(rho K_t), K_t - min_real) are virtual

Models that were sparse before score in other ways too: by sigmoids, within groups of experts, with a bias on the choice (``evomoe.model.routers.choice``).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evomoe.model.modality import Modality
from evomoe.model.routers.choice import SCORES, ChoiceBias, hide_groups
from evomoe.model.routers.float32 import Float32Linear, inverse_rms
from evomoe.model.routers.router import Budgets, Scores, ratio
from evomoe.model.routers.virtual_router import VirtualRouter
from evomoe.model.routing import GATES, Routing
from evomoe.recipe.anyexperts_options import ROUNDING, AnyExpertsOptions, SlotKind
from evomoe.support.errors import OptionError, within
from evomoe.support.needs import needs_of


class Importance(nn.Module):
    """A small network that gives each token one number, 0 before it has learnt.

    Args:
        width: of its hidden layer.
    """

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.inner, self.outer = Float32Linear(hidden_size, width), Float32Linear(width, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.inner.draw(std=self.inner.weight.shape[1] ** -0.5)
        for parameter in self.outer.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.outer(F.silu(self.inner(x_TD, scale_T1=inverse_rms(x_TD)))).squeeze(-1)


def cap_by_token(logits_TN: Tensor, num_real: int, slots_T: Tensor, rho: float, min_real: int) -> Tensor:
    """At most a share rho of each token's slots is virtual."""
    return torch.minimum((rho * slots_T + ROUNDING).floor().long(), slots_T - min_real)


def cap_by_batch(logits_TN: Tensor, num_real: int, slots_T: Tensor, rho: float, min_real: int) -> Tensor:
    """At most a share rho of all tokens' slots is virtual; they go where they are preferred most."""
    V, real_TR = logits_TN.shape[1] - num_real, logits_TN[:, :num_real].sort(-1, descending=True).values
    best_TV = logits_TN[:, num_real:].sort(-1, descending=True).values
    # The n-th virtual expert takes the place of the real one that would stand at K_t - n. The gain falls with n, so that the
    # best gains of all are also, within each token, the first ones.
    place_TV = slots_T.unsqueeze(-1) - 1 - torch.arange(V, device=slots_T.device)
    gain_TV = best_TV - real_TR.gather(1, place_TV.clamp(0, num_real - 1))
    gain_TV = gain_TV.masked_fill(place_TV < min_real, float("-inf"))
    allowed = min(int(rho * int(slots_T.sum()) + ROUNDING), gain_TV.numel())
    gains, cells = gain_TV.reshape(-1).topk(allowed)
    chosen = torch.zeros_like(gain_TV, dtype=torch.bool).reshape(-1)
    chosen[cells[gains.isfinite()]] = True
    return chosen.view_as(gain_TV).sum(-1)


def cap_by_expectation(logits_TN: Tensor, num_real: int, slots_T: Tensor, rho: float, min_real: int) -> Tensor:
    """No cap: the balance loss alone decides how many are virtual."""
    return slots_T - min_real


CAPS: dict[str, Callable[[Tensor, int, Tensor, float, int], Tensor]] = {
    "token": cap_by_token,
    "batch": cap_by_batch,
    "expectation": cap_by_expectation,
}
"""How many virtual experts each token may have (T,), from logits (T, N), slots (T,), rho and min_real."""


def choose_capped(logits_TN: Tensor, num_real: int, slots_T: Tensor, cap_T: Tensor, most: int) -> Tensor:
    """Each token's best slots with at most ``cap_T`` virtual ones: indices (T, most), best first, N where it has no more slots.

    All but a token's best virtual experts are hidden, then one top-k: the sum of the logits is the largest that the cap allows.
    """
    rank_TV = logits_TN[:, num_real:].argsort(dim=-1, descending=True, stable=True).argsort(-1)
    hidden_TN = F.pad(rank_TV >= cap_T.unsqueeze(-1), (num_real, 0))
    index_TK = logits_TN.masked_fill(hidden_TN, float("-inf")).topk(most, dim=-1).indices
    is_slot_TK = torch.arange(most, device=slots_T.device) < slots_T.unsqueeze(-1)
    return index_TK.masked_fill(~is_slot_TK, logits_TN.shape[1])


class AnyExpertsRouter(VirtualRouter[AnyExpertsOptions]):
    """A variable number of experts for every token. ``num_experts_per_tok`` is how many real ones they are to have on average."""

    Options = AnyExpertsOptions
    gives = ("importance_T", "input_scale_T1", "excess_T")
    adjustable = ("k_min", "k_max", "span", "budget", "rho", "min_real", "cap_scope", "alpha_f", "lam", "over", "output_scale")
    float32 = ("bias.value_N",)

    def __init__(self, hidden_size: int, num_experts: int, **options: Any) -> None:
        super().__init__(hidden_size, num_experts, **options)
        self.importance = Importance(hidden_size, self.options.importance_width)
        self.bias = ChoiceBias(num_experts + len(self.virtual)) if self.options.biased or self.options.bias_rate else None

    def virtual_kinds(self) -> list[SlotKind]:
        return self.options.kinds(self.num_experts)

    @property
    def importance_network(self) -> nn.Module:
        return self.importance

    @property
    def virtual_share(self) -> float:
        """The largest share of virtual slots: rho, or 0 without virtual experts."""
        return self.options.virtual_share(self.num_experts)

    def slots(self, top_k: float) -> tuple[float, float]:
        """The range of slots, k_min and k_max."""
        return self.options.range_of(top_k, self.virtual_share)

    def target(self, top_k: float) -> float:
        """How many real experts a token of importance 1/2 has if it uses its cap to the full."""
        return (1 - self.virtual_share) * sum(self.slots(top_k)) / 2

    def budgets(self, top_k: int) -> Budgets:
        share = 1 - self.virtual_share
        return Budgets(self.target(top_k), share, share * self.num_experts)

    def for_experts_per_token(self, number: float) -> dict[str, Any]:
        return {"router_options": {"budget": number}}

    def check(self, top_k: int, gate: str) -> None:
        with within("router_options"):
            self.options.check_choice(top_k, bool(needs_of(GATES[gate])), self.num_experts)

    def forward(self, x_TD: Tensor, modality: Modality) -> Tensor:
        """Scores of the real, then the virtual experts: (T, N)."""
        return self.score(x_TD, modality).logits_TE

    def score(self, x_TD: Tensor, modality: Modality) -> Scores:
        importance_T = self.importance(x_TD)
        weight_T1 = importance_T.sigmoid().unsqueeze(-1)
        scale_T1 = 1 + self.options.alpha_f * weight_T1
        sign_N = torch.ones(self.num_experts + len(self.virtual), device=x_TD.device)
        sign_N[self.num_experts :] = -1
        logits_TN = self.gate(x_TD, scale_T1=scale_T1) + self.options.lam * (2 * weight_T1 - 1) * sign_N
        return Scores(logits_TN, importance_T, scale_T1 if self.options.alpha_f else None)

    def route(self, x_TD: Tensor, modality: Modality, top_k: int, gate: str, dropout: float = 0.0) -> Routing:
        """As ``Router.route``; index (T, k_max), where N means a slot that the token does not have.

        Raises:
            OptionError: cap_scope is "batch" outside training, or experts are dropped that stand in groups.
        """
        if self.options.cap_scope == "batch" and not self.training:
            raise OptionError(
                "router_options.cap_scope",
                "'batch' is for training alone, for a token's experts depend on the batch. Stage III leaves a model with cap_scope "
                "'token'; evomoe.model.budget.set_cap_scope(model, 'token') does so for any other.",
            )
        if dropout and self.options.groups > 1:
            raise OptionError("expert_dropout", "it knows no groups of experts; leave it out, or `router_options.groups`.")
        routing = super().route(x_TD, modality, top_k, gate, dropout)
        assert routing.importance_T is not None
        soft_T, slots_T = self._slots_of(routing.importance_T, top_k)
        soft_T = soft_T + (slots_T - soft_T).detach()
        is_real_TK = routing.index_TK < self.num_experts
        excess_T = soft_T * is_real_TK.sum(-1) / slots_T / self.target(top_k) - 1
        probs_TN = routing.probs_TE / routing.probs_TE.sum(-1, keepdim=True)
        return replace(routing, probs=probs_TN, excess_T=excess_T)

    def hide(self, logits_TN: Tensor, dropout: float, top_k: int) -> Tensor:
        """Only real experts are hidden."""
        R = self.num_experts
        return torch.cat([super().hide(logits_TN[:, :R], dropout, top_k), logits_TN[:, R:]], -1)

    def fewest(self, top_k: int) -> int:
        return round(self.slots(top_k)[1])

    def probabilities(self, logits_TN: Tensor) -> Tensor:
        return SCORES[self.options.scores](logits_TN)

    def choose(self, scores: Scores, probs_TN: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        assert scores.importance_T is not None
        options, R = self.options, self.num_experts
        _, slots_T = self._slots_of(scores.importance_T, top_k)
        choice_TN = self._choice(scores.logits_TE.detach(), probs_TN.detach())
        cap_T = CAPS[options.cap_scope](choice_TN, R, slots_T, options.rho, options.min_real)
        index_TK = choose_capped(choice_TN, R, slots_T, cap_T, round(self.slots(top_k)[1]))
        if self.bias is not None and self.training and torch.is_grad_enabled():
            self.bias.count(index_TK)
        return index_TK, F.pad(probs_TN, (0, 1)).gather(1, index_TK)  # 0 for slots that are none

    def weigh(self, index_TK: Tensor, chosen_TK: Tensor, gate: str) -> Tensor:
        is_real_TK, weight_TK = index_TK < self.num_experts, GATES[gate](chosen_TK, chosen_TK)
        if self.options.over == "real":
            weight_TK = torch.where(is_real_TK, GATES[gate](chosen_TK, chosen_TK * is_real_TK), weight_TK)
        return weight_TK * self.options.output_scale

    def per_probability(self, index_TK: Tensor, chosen_TK: Tensor, gate: str) -> Tensor:
        """Real experts and virtual ones differ where the gate's sum is over real ones alone."""
        if self.options.over != "real":
            return super().per_probability(index_TK, chosen_TK, gate)
        real_TK = chosen_TK * (index_TK < self.num_experts)
        parts = [
            (ratio(GATES[gate](given_TK, given_TK), given_TK), n)
            for given_TK, n in ((real_TK, self.num_experts), (chosen_TK, len(self.virtual)))
        ]
        return torch.cat([part_T1.expand(-1, n) for part_T1, n in parts], -1) * self.options.output_scale

    def _slots_of(self, importance_T: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        """How many slots each token has, before rounding and after."""
        low, high = self.slots(top_k)
        soft_T = low + (high - low) * importance_T.sigmoid()
        return soft_T, soft_T.round().long()

    def _choice(self, logits_TN: Tensor, probs_TN: Tensor) -> Tensor:
        """What the experts are chosen by, -inf for those that are not to be: the logits, or with groups and bias the probabilities."""
        options, R = self.options, self.num_experts
        if self.bias is None and options.groups == 1:
            return logits_TN
        choice_TN = probs_TN if self.bias is None else probs_TN + self.bias.value_N
        choice_TN = choice_TN.masked_fill(logits_TN.isneginf(), float("-inf"))
        real_TR = hide_groups(choice_TN[:, :R], options.groups, options.open_groups, options.group_best)
        return torch.cat([real_TR, choice_TN[:, R:]], -1)

    def after_step(self) -> None:
        if self.bias is not None and self.options.bias_rate:
            self.bias.move(self.options.bias_rate, self.num_experts, self.virtual_share)

    def after_training(self) -> dict[str, Any]:
        """A cap over the batch is for training alone; a model is left with one over each token's slots."""
        return {"cap_scope": "token"} if self.options.cap_scope == "batch" else {}
