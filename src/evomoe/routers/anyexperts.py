"""AnyExperts: how many experts a token gets follows its importance, and some of its slots may go to virtual experts.

Published as an abstract (arXiv 2511.18314) without code; where it is silent, this is this project's reading.

T tokens, D hidden, R real and V virtual experts, N = R + V, K slots at most.

    s_t = MLP(RMSNorm(h_t)),  w_t = sigmoid(s_t)        importance, 1/2 at the start
    h'_t = (1 + alpha_f w_t) h_t                        what gate and experts are given
    K_t = round(k_min + (k_max - k_min) w_t)            slots
    g_t = W_g h'_t;  lam (2 w_t - 1) is added to the real experts' scores and taken from the virtual ones'
    S_t = the K_t best slots of which at most min(floor(rho K_t), K_t - min_real) are virtual

Models that were sparse before score in other ways too: by sigmoids, within groups of experts, with a bias on the choice (``evomoe.routers.scores``).
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evomoe.modality import Modality
from evomoe.routers.base import GATES, Float32Linear, RouterWarning, Routing, VirtualRouter, in_float32
from evomoe.routers.scores import SCORES, ChoiceBias, hide_groups


def matched(real: float, rho: float, span: float) -> tuple[float, float]:
    """The range of slots, ``span`` wide, whose middle holds on average ``real`` real experts: (8, 0.2, 4) gives 8 to 12.

    A range that would begin below one slot is made narrower around the same middle.

    Raises:
        ValueError: that is less than one slot.
    """
    middle = real / (1 - rho)
    if middle < 1:
        raise ValueError(
            f"router 'anyexperts': {real:g} real experts per token are less than one slot; ask for {1 - rho:g} or more."
        )
    half = min(span / 2, middle - 1)
    return round(middle - half, 9), round(middle + half, 9)  # a whole number of slots stays one


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
        nn.init.normal_(self.inner.weight, std=self.inner.weight.shape[1] ** -0.5)
        nn.init.zeros_(self.inner.bias)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, x_TD: Tensor) -> Tensor:
        x_TD = x_TD * torch.rsqrt(x_TD.square().mean(-1, keepdim=True) + 1e-6)
        return self.outer(F.silu(self.inner(x_TD))).squeeze(-1)


_ROUNDING = 1e-4
"""In float32, 0.84 * 75 is not quite 63."""


def cap_by_token(logits_TN: Tensor, num_real: int, slots_T: Tensor, rho: float, min_real: int) -> Tensor:
    """At most a share rho of each token's slots is virtual."""
    return torch.minimum((rho * slots_T + _ROUNDING).floor().long(), slots_T - min_real)


def cap_by_batch(logits_TN: Tensor, num_real: int, slots_T: Tensor, rho: float, min_real: int) -> Tensor:
    """At most a share rho of all tokens' slots is virtual; they go where they are preferred most."""
    V, real_TR = logits_TN.shape[1] - num_real, logits_TN[:, :num_real].sort(-1, descending=True).values
    best_TV = logits_TN[:, num_real:].sort(-1, descending=True).values
    # The n-th virtual expert takes the place of the real one that would stand at K_t - n. The gain falls with n, so that the
    # best gains of all are also, within each token, the first ones.
    place_TV = slots_T.unsqueeze(-1) - 1 - torch.arange(V, device=slots_T.device)
    gain_TV = best_TV - real_TR.gather(1, place_TV.clamp(0, num_real - 1))
    gain_TV = gain_TV.masked_fill(place_TV < min_real, float("-inf"))
    allowed = min(int(rho * int(slots_T.sum()) + _ROUNDING), gain_TV.numel())
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


@dataclass(frozen=True)
class _Scores:
    importance_T: Tensor
    scale_T1: Tensor
    logits_TN: Tensor


class AnyExpertsRouter(VirtualRouter):
    """A variable number of experts for every token. ``num_experts_per_tok`` is how many real ones they are to have on average.

    Args:
        k_min, k_max: the range of slots; by default the range ``matched`` to num_experts_per_tok. They need not be whole.
        span: how wide the matched range is; by default half of num_experts_per_tok, at least 1.
        budget: real experts per token, in place of num_experts_per_tok, by which a range is moved after training.
        rho: the largest share of virtual slots.
        num_virtual: V; by default the share rho of all N experts. 0 for none.
        virtual: their kind, see ``evomoe.routers.virtual``.
        min_real: real experts that every token has.
        cap_scope: what rho is a share of: "token", "batch" (in training alone, for a token's experts then depend on the others)
            or "expectation" (no cap).
        alpha_f: how much importance strengthens what gate and experts are given.
        lam: how much importance moves the scores from virtual to real experts.
        over: the chosen slots whose probabilities the gates "normalised" and "straight_through" divide those of real experts by: "real"
            or "all". Those of virtual experts are divided by the sum over all, so that no weight is above 1.
        importance_width: of the network that estimates importance.
        scores: how logits become probabilities, a name of ``evomoe.routers.scores.SCORES``.
        groups, open_groups, group_best: the real experts stand in so many groups of equal size, and a token's come from so many of
            them: those with the largest sum of their ``group_best`` best experts.
        output_scale: what the weights of a token's experts are multiplied by.
        biased: whether a bias takes part in the choice of experts, not in their weights.
        bias_rate: how far that bias moves after each optimiser step towards equally loaded real experts that have the share
            1 - rho of all slots; 0 leaves it as it is.
    """

    gives = ("importance_T", "input_scale_T1", "excess")

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        k_min: float | None = None,
        k_max: float | None = None,
        span: float | None = None,
        budget: float | None = None,
        rho: float = 0.2,
        num_virtual: int | None = None,
        virtual: str = "zero",
        min_real: int = 1,
        cap_scope: str = "token",
        alpha_f: float = 0.01,
        lam: float = 1.0,
        over: str = "real",
        importance_width: int = 64,
        scores: str = "softmax",
        groups: int = 1,
        open_groups: int = 1,
        group_best: int = 1,
        output_scale: float = 1.0,
        biased: bool = False,
        bias_rate: float = 0.0,
    ) -> None:
        name = "router 'anyexperts'"
        if not 0 <= rho < 1:
            raise ValueError(f"{name}: rho is {rho}; the share of virtual slots must lie in [0, 1).")
        if (k_min is None) != (k_max is None):
            raise ValueError(f"{name}: give both k_min and k_max, or neither and num_experts_per_tok decides.")
        for option, value, table in (("cap_scope", cap_scope, CAPS), ("over", over, ("real", "all")), ("scores", scores, SCORES)):
            if value not in table:
                raise ValueError(f"{name}: there is no {option} '{value}'; choose from {', '.join(table)}.")
        if not 1 <= min_real <= num_experts or importance_width < 1:
            raise ValueError(f"{name}: min_real ({min_real}) and importance_width ({importance_width}) must be at least 1, and there "
                             f"are {num_experts} real experts.")  # fmt: skip
        if groups < 1 or num_experts % groups or not 1 <= open_groups <= groups or not 1 <= group_best <= num_experts // groups:
            raise ValueError(f"{name}: {num_experts} real experts cannot stand in {groups} equal groups of which {open_groups} are open, "
                             f"by the best {group_best} of each.")  # fmt: skip
        if bias_rate < 0 or output_scale <= 0 or (num_virtual or 0) < 0:
            raise ValueError(f"{name}: bias_rate ({bias_rate}) and num_virtual ({num_virtual}) must not be negative, output_scale "
                             f"({output_scale}) must be above 0.")  # fmt: skip
        count = round(num_experts * rho / (1 - rho)) if num_virtual is None else num_virtual
        super().__init__(hidden_size, num_experts, [virtual] * count)
        self.k_min, self.k_max, self.span, self.budget, self.rho, self.min_real = k_min, k_max, span, budget, rho, min_real
        self.cap_scope, self.alpha_f, self.lam, self.over = cap_scope, alpha_f, lam, over
        self.scores, self.groups, self.open_groups, self.group_best = scores, groups, open_groups, group_best
        self.output_scale, self.bias_rate = output_scale, bias_rate
        self.importance = Importance(hidden_size, importance_width)
        self.bias = ChoiceBias(num_experts + count) if biased or bias_rate else None

    def slots(self, top_k: float) -> tuple[float, float]:
        """The range of slots, k_min and k_max."""
        span = max(top_k / 2, 1.0) if self.span is None else self.span
        if self.k_min is not None and self.k_max is not None:
            if self.budget is None:
                return self.k_min, self.k_max
            span = self.k_max - self.k_min
        return matched(top_k if self.budget is None else self.budget, self.virtual_share, span)

    def target(self, top_k: float) -> float:
        """How many real experts a token of importance 1/2 has if it uses its cap to the full."""
        return (1 - self.virtual_share) * sum(self.slots(top_k)) / 2

    @property
    def virtual_share(self) -> float:
        """The largest share of virtual slots: rho, or 0 without virtual experts."""
        return self.rho if len(self.virtual) else 0.0

    def check(self, top_k: int, gate: str) -> None:
        low, high = self.slots(top_k)
        name, how = "router 'anyexperts'", "give k_min and k_max (--router-options k_min=... k_max=...)"
        if not self.min_real <= low <= high:
            raise ValueError(f"{name}: tokens would have {low:g} to {high:g} slots, where min_real is {self.min_real}; {how}.")
        if round(high) > self.num_experts and self.budget is not None:
            largest = (1 - self.virtual_share) * (self.num_experts - (high - low) / 2)
            raise ValueError(f"{name}: a budget of {self.budget:g} takes {low:g} to {high:g} slots, but there are only {self.num_experts} "
                             f"real experts; with a range as wide as this the largest budget is {largest:g}, span=... makes it narrower.")  # fmt: skip
        if round(high) > self.num_experts:
            fits = [number for number in range(1, top_k) if round(self.slots(number)[1]) <= self.num_experts]
            how = (
                f"with this cap --num-experts-per-tok can be at most {fits[-1]}, or {how}" if self.k_max is None and fits else how
            )
            raise ValueError(f"{name}: tokens would have {low:g} to {high:g} slots, k_min to k_max, but there are only {self.num_experts} "
                             f"real experts; {how}.")  # fmt: skip
        if round(high) > (within := self.open_groups * self.num_experts // self.groups):
            raise ValueError(f"{name}: k_max is {high:g}, but a token's experts come from {self.open_groups} of {self.groups} groups, "
                             f"which have {within}; {how}.")  # fmt: skip
        if gate == "normalised" and (least := self._fewest_counted(round(low))) == 1:
            raise ValueError(
                f"{name}: k_min is {low:g}, and a token may have {least} {'real expert' if self.over == 'real' else 'slot'}; gate "
                "'normalised' gives a token's only expert the weight 1, and its router no gradient. Choose --gate straight_through, or "
                f"k_min=2{' min_real=2' if self.over == 'real' and len(self.virtual) else ''}."
            )
        if gate == "normalised" and self.over == "real" and self.lam and set(self.virtual.kinds) == {"zero"}:
            warnings.warn(
                f"{name}: under gate 'normalised' importance has no gradient through lam, which moves all real experts alike, and zeros "
                "weigh nothing; choose --gate straight_through, whose values are the same.",
                RouterWarning,
                stacklevel=2,
            )
        if len(self.virtual) and self._most_virtual(round(high)) == 0:
            wanted = self.min_real + 1
            if self.cap_scope == "token":
                wanted = max(wanted, math.ceil(1 / self.rho)) if self.rho else "endlessly many"
            warnings.warn(
                f"{name}: with at most {round(high)} slots, min_real={self.min_real} and rho={self.rho:g} no token can have a virtual "
                f"expert; that takes {wanted} slots. Use more experts per token, a larger rho, or cap_scope=expectation.",
                RouterWarning,
                stacklevel=2,
            )

    def _most_virtual(self, slots: int) -> int:
        """How many of a token's so many slots may be virtual."""
        most = slots - self.min_real
        if self.cap_scope == "token":
            most = min(math.floor(self.rho * slots + _ROUNDING), most)
        return min(len(self.virtual), most)

    def _fewest_counted(self, slots: int) -> int:
        """How many of so many slots the gate's sum is over, at least."""
        return slots if self.over == "all" else slots - self._most_virtual(slots)

    def forward(self, x_TD: Tensor, modality: Modality) -> Tensor:
        """Scores of the real, then the virtual experts: (T, N)."""
        return self._scores(x_TD).logits_TN

    def _scores(self, x_TD: Tensor) -> _Scores:
        importance_T = self.importance(x_TD)
        weight_T1 = importance_T.sigmoid().unsqueeze(-1)
        scale_T1 = 1 + self.alpha_f * weight_T1
        sign_N = torch.ones(self.num_experts + len(self.virtual), device=x_TD.device)
        sign_N[self.num_experts :] = -1
        logits_TN = self.gate(x_TD, scale_T1=scale_T1) + self.lam * (2 * weight_T1 - 1) * sign_N
        return _Scores(importance_T, scale_T1, logits_TN)

    def route(self, x_TD: Tensor, modality: Modality, top_k: int, gate: str, dropout: float = 0.0) -> Routing:
        """As ``Router.route``; index (T, k_max), where N means a slot that the token does not have.

        Raises:
            ValueError: cap_scope is "batch" outside training, or experts are dropped that stand in groups.
        """
        if self.cap_scope == "batch" and not self.training:
            raise ValueError(
                "router 'anyexperts': cap_scope 'batch' is for training alone, for a token's experts depend on the batch. Stage III "
                "leaves a model with cap_scope=token; evomoe.anyexperts.set_cap_scope(model, 'token') does so for any other."
            )
        if dropout and self.groups > 1:
            raise ValueError("router 'anyexperts': expert_dropout knows no groups of experts; leave it out, or groups.")
        (low, high), R = self.slots(top_k), self.num_experts
        with in_float32(x_TD):
            scores = self._scores(x_TD.float())
        logits_TN = torch.cat([self.hide(scores.logits_TN[:, :R], dropout, round(high)), scores.logits_TN[:, R:]], -1)
        slots_T = (low + (high - low) * scores.importance_T.sigmoid()).round().long()
        probs_TN = SCORES[self.scores](logits_TN)
        choice_TN = self._choice(logits_TN.detach(), probs_TN.detach())
        cap_T = CAPS[self.cap_scope](choice_TN, R, slots_T, self.rho, self.min_real)
        index_TK = choose_capped(choice_TN, R, slots_T, cap_T, round(high))
        if self.bias is not None and self.training and torch.is_grad_enabled():
            self.bias.count(index_TK)
        chosen_TK = F.pad(probs_TN, (0, 1)).gather(1, index_TK)  # 0 for slots that are none
        is_real_TK, weight_TK = index_TK < R, GATES[gate](chosen_TK, chosen_TK)
        if self.over == "real":
            weight_TK = torch.where(is_real_TK, GATES[gate](chosen_TK, chosen_TK * is_real_TK), weight_TK)
        soft_T = low + (high - low) * scores.importance_T.sigmoid()
        soft_T = soft_T + (slots_T - soft_T).detach()
        excess = (soft_T * is_real_TK.sum(-1) / slots_T).mean() / self.target(top_k) - 1
        return Routing(
            scores.logits_TN,
            probs_TN / probs_TN.sum(-1, keepdim=True),
            index_TK,
            weight_TK * self.output_scale,
            scores.importance_T,
            scores.scale_T1 if self.alpha_f else None,
            excess,
        )

    def _choice(self, logits_TN: Tensor, probs_TN: Tensor) -> Tensor:
        """What the experts are chosen by, -inf for those that are not to be: the logits, or with groups and bias the probabilities."""
        if self.bias is None and self.groups == 1:
            return logits_TN
        choice_TN = probs_TN if self.bias is None else probs_TN + self.bias.value_N
        choice_TN = choice_TN.masked_fill(logits_TN.isneginf(), float("-inf"))
        R = self.num_experts
        real_TR = hide_groups(choice_TN[:, :R], self.groups, self.open_groups, self.group_best)
        return torch.cat([real_TR, choice_TN[:, R:]], -1)

    def after_step(self) -> None:
        if self.bias is not None and self.bias_rate:
            self.bias.move(self.bias_rate, self.num_experts, self.virtual_share)
