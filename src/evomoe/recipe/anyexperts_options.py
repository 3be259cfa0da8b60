"""The options of router "anyexperts": how many slots a token has, how many of them may be virtual, how experts are chosen.

Each part checks itself. Needs neither torch nor transformers.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from evomoe.recipe.row_options import RouterOptions, RouterWarning, check_width
from evomoe.support.errors import OptionError

SlotKind = Literal["zero", "identity", "constant"]

ROUNDING = 1e-4
"""In float32, 0.84 * 75 is not quite 63."""


@dataclass(frozen=True)
class Slots(RouterOptions):
    """How many slots a token has.

    Attributes:
        k_min: fewest slots; by default the range is matched to num_experts_per_tok. It need not be whole.
        k_max: most slots.
        span: how wide the matched range is; by default half of num_experts_per_tok, at least 1.
        budget: real experts per token, in place of num_experts_per_tok, by which a range is moved after training.
    """

    k_min: float | None = None
    k_max: float | None = None
    span: float | None = None
    budget: float | None = None

    def check(self, num_experts: int) -> None:
        super().check(num_experts)
        if (self.k_min is None) != (self.k_max is None):
            raise OptionError(
                "k_min", "give both ends of the range, or neither: it then follows from the number of experts per token."
            )

    def range_of(self, top_k: float, virtual_share: float) -> tuple[float, float]:
        """The range of slots, k_min and k_max, for ``top_k`` real experts on average."""
        span = max(top_k / 2, 1.0) if self.span is None else self.span
        if self.k_min is not None and self.k_max is not None:
            if self.budget is None:
                return self.k_min, self.k_max
            span = self.k_max - self.k_min
        return matched(top_k if self.budget is None else self.budget, virtual_share, span)


@dataclass(frozen=True)
class Cap(RouterOptions):
    """How many of a token's slots may be virtual.

    Attributes:
        rho: the largest share of virtual slots.
        num_virtual: V; by default the share rho of all N experts. 0 for none.
        virtual: what a virtual expert gives: nothing, the token itself, or a learned vector.
        min_real: real experts that every token has.
        cap_scope: what rho is a share of: token, batch (in training alone, for a token's experts then depend on the others) or
            expectation (no cap).
    """

    rho: float = 0.2
    num_virtual: int | None = None
    virtual: SlotKind = "zero"
    min_real: int = 1
    cap_scope: Literal["token", "batch", "expectation"] = "token"

    def check(self, num_experts: int) -> None:
        super().check(num_experts)
        if not 0 <= self.rho < 1:
            raise OptionError("rho", f"{self.rho:g} must lie in [0, 1): it is the share of virtual slots.")
        if not 1 <= self.min_real <= num_experts:
            raise OptionError("min_real", f"{self.min_real} must be at least 1, and there are {num_experts} real experts.")
        if (self.num_virtual or 0) < 0:
            raise OptionError("num_virtual", f"{self.num_virtual} must not be negative.")

    def kinds(self, num_experts: int) -> list[SlotKind]:
        """The kind of each virtual expert beside so many real ones."""
        count = round(num_experts * self.rho / (1 - self.rho)) if self.num_virtual is None else self.num_virtual
        return [self.virtual] * count

    def virtual_share(self, num_experts: int) -> float:
        """The largest share of virtual slots: rho, or 0 without virtual experts."""
        return self.rho if self.kinds(num_experts) else 0.0

    def most_virtual(self, slots: int, num_experts: int) -> int:
        """How many of a token's so many slots may be virtual."""
        most = slots - self.min_real
        if self.cap_scope == "token":
            most = min(math.floor(self.rho * slots + ROUNDING), most)
        return min(len(self.kinds(num_experts)), most)


@dataclass(frozen=True)
class Choice(RouterOptions):
    """How experts are scored, chosen and weighed.

    Attributes:
        scores: how logits become probabilities.
        groups: the real experts form this many groups of equal size.
        open_groups: a token's experts come from this many groups: those with the largest sum of their best experts.
        group_best: how many best experts of a group that sum is of.
        biased: whether a bias takes part in the choice of experts, not in their weights.
        bias_rate: how far that bias moves after each optimiser step; 0 leaves it as it is. It moves until the real experts
            are equally loaded and have the share 1 - rho of all slots.
        over: which chosen slots a real expert's probability is divided by, under the gates normalised and straight_through:
            real or all. That of a virtual expert is divided by the sum over all, so that no weight is above 1.
        output_scale: what the weights of a token's experts are multiplied by.
    """

    scores: Literal["softmax", "sigmoid"] = "softmax"
    groups: int = 1
    open_groups: int = 1
    group_best: int = 1
    biased: bool = False
    bias_rate: float = 0.0
    over: Literal["real", "all"] = "real"
    output_scale: float = 1.0

    def check(self, num_experts: int) -> None:
        super().check(num_experts)
        if self.groups < 1 or num_experts % self.groups:
            raise OptionError("groups", f"{num_experts} real experts cannot stand in {self.groups} equal groups.")
        if not 1 <= self.open_groups <= self.groups:
            raise OptionError("open_groups", f"{self.open_groups} of {self.groups} groups cannot be open.")
        if not 1 <= self.group_best <= num_experts // self.groups:
            raise OptionError(
                "group_best", f"{self.group_best} must lie between 1 and a group's size, {num_experts // self.groups}."
            )
        if self.bias_rate < 0:
            raise OptionError("bias_rate", f"{self.bias_rate:g} must not be negative.")
        if self.output_scale <= 0:
            raise OptionError("output_scale", f"{self.output_scale:g} must be above 0.")


@dataclass(frozen=True)
class AnyExpertsOptions(Choice, Cap, Slots):
    """What importance does, beside slots, cap and choice.

    Attributes:
        alpha_f: how much importance strengthens what gate and experts are given.
        lam: how much importance moves the scores from virtual to real experts.
        importance_width: hidden width of the network that estimates importance.
    """

    alpha_f: float = 0.01
    lam: float = 1.0
    importance_width: int = 64

    smaller: ClassVar[dict[str, Any]] = {"importance_width": 16}

    def check(self, num_experts: int) -> None:
        super().check(num_experts)
        check_width("importance_width", self.importance_width)

    def check_choice(self, top_k: int, gate_needs_two: bool, num_experts: int) -> None:
        """Makes sure that tokens can have so many slots, and that the gate gives the router a gradient.

        Args:
            top_k: real experts per token, on average.
            gate_needs_two: whether the gate leaves a token's only expert no gradient.
            num_experts: real experts.

        Raises:
            OptionError: they cannot.
        """
        share = self.virtual_share(num_experts)
        low, high = self.range_of(top_k, share)
        how = "give k_min and k_max: `router_options.k_min=...` `router_options.k_max=...`"
        if not self.min_real <= low <= high:
            raise OptionError("k_min", f"tokens would have {low:g} to {high:g} slots, where min_real is {self.min_real}; {how}.")
        if round(high) > num_experts and self.budget is not None:
            largest = (1 - share) * (num_experts - (high - low) / 2)
            raise OptionError(
                "budget",
                f"a budget of {self.budget:g} takes {low:g} to {high:g} slots, but there are only {num_experts} real experts. "
                f"With a range as wide as this the largest budget is {largest:g}; `router_options.span=...` makes it narrower.",
            )
        if round(high) > num_experts:
            fits = [k for k in range(1, top_k) if round(self.range_of(k, share)[1]) <= num_experts]
            if self.k_max is None and fits:
                how = f"with this cap `num_experts_per_tok` can be at most {fits[-1]}, or {how}"
            raise OptionError(
                "k_max", f"tokens would have {low:g} to {high:g} slots, but there are only {num_experts} real experts; {how}."
            )
        within = self.open_groups * num_experts // self.groups
        if round(high) > within:
            raise OptionError(
                "k_max",
                f"it is {high:g}, but a token's experts come from {self.open_groups} of {self.groups} groups, which have {within}; "
                f"{how}.",
            )
        fewest = round(low) - (0 if self.over == "all" else self.most_virtual(round(low), num_experts))
        if gate_needs_two and fewest == 1:
            more_real = " `router_options.min_real=2`" if self.over == "real" and share else ""
            raise OptionError(
                "k_min",
                f"it is {low:g}, and a token may have 1 {'real expert' if self.over == 'real' else 'slot'}. This gate gives a "
                "token's only expert the weight 1, and its router no gradient: choose `gate=straight_through`, or "
                f"`router_options.k_min=2`{more_real}.",
            )
        self._warn(round(high), gate_needs_two, num_experts)

    def _warn(self, most_slots: int, gate_needs_two: bool, num_experts: int) -> None:
        """Warns of options that do less than they seem to."""
        kinds = set(self.kinds(num_experts))
        if gate_needs_two and self.over == "real" and self.lam and kinds == {"zero"}:
            warnings.warn(
                "router 'anyexperts': under gate 'normalised' importance has no gradient through lam, which moves all real experts "
                "alike, and zeros weigh nothing; choose `gate=straight_through`, whose values are the same.",
                RouterWarning,
                stacklevel=3,
            )
        if kinds and self.most_virtual(most_slots, num_experts) == 0:
            wanted: float | str = self.min_real + 1
            if self.cap_scope == "token":
                wanted = max(wanted, math.ceil(1 / self.rho)) if self.rho else "endlessly many"
            warnings.warn(
                f"router 'anyexperts': with at most {most_slots} slots, min_real={self.min_real} and rho={self.rho:g} no token can "
                f"have a virtual expert; that takes {wanted} slots. Use more experts per token, a larger rho, or "
                "`router_options.cap_scope=expectation`.",
                RouterWarning,
                stacklevel=3,
            )


def matched(real: float, rho: float, span: float) -> tuple[float, float]:
    """The range of slots, ``span`` wide, whose middle holds on average ``real`` real experts: (8, 0.2, 4) gives 8 to 12.

    A range that would begin below one slot is made narrower around the same middle.

    Raises:
        OptionError: that is less than one slot.
    """
    middle = real / (1 - rho)
    if middle < 1:
        raise OptionError("budget", f"{real:g} real experts per token are less than one slot; ask for {1 - rho:g} or more.")
    half = min(span / 2, middle - 1)
    return round(middle - half, 9), round(middle + half, 9)  # a whole number of slots stays one
