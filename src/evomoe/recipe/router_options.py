"""The options of the routers, as data: the command line shows them without torch. A router's network is in its own file."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from evomoe.recipe.anyexperts_options import AnyExpertsOptions, SlotKind
from evomoe.recipe.named_values import NamedValues
from evomoe.recipe.row_options import RouterOptions, check_width
from evomoe.support.errors import OptionError

SMALLEST_CAP = 0.001
"""A bound below which all logits are the same in float32."""


@dataclass(frozen=True)
class DTROptions(RouterOptions):
    """How large the hypernetworks of the dynamic token-aware router are, and how large its logits may be.

    Attributes:
        hypernet_width: H. 64 with rank 16 reproduces the activated parameters of the paper's Table 1.
        rank: R.
        cap: bounds the logits by ``cap * tanh(logit / cap)``; 0 bounds none.
    """

    hypernet_width: int = 64
    rank: int = 16
    cap: float = 0.0

    smaller: ClassVar[dict[str, Any]] = {"hypernet_width": 16, "rank": 4}

    def check(self, num_experts: int) -> None:
        for name in ("hypernet_width", "rank"):
            check_width(name, getattr(self, name))
        if not (self.cap == 0 or SMALLEST_CAP <= self.cap < math.inf):
            raise OptionError("cap", f"{self.cap:g} must be finite and at least {SMALLEST_CAP:g}; 0 bounds no logits.")


@dataclass(frozen=True)
class FixedOptions(RouterOptions):
    """Which expert gets every token.

    Attributes:
        expert: 0 to num_experts - 1; expert 0 is the paper's expert 1.
    """

    expert: int = 0

    def check(self, num_experts: int) -> None:
        if not 0 <= self.expert < num_experts:
            raise OptionError("expert", f"expert {self.expert} does not exist; choose 0 to {num_experts - 1}.")


@dataclass(frozen=True)
class ShuffledOptions(RouterOptions):
    """Whose outputs are permuted, and how.

    Attributes:
        inner: name of the router inside.
        seed: draws the permutation; every seed gives a permutation other than the identity.
        inner_options: options of the router inside.
    """

    inner: str = "dtr"
    seed: int = 0
    inner_options: NamedValues = field(default_factory=dict)


@dataclass(frozen=True)
class TopPOptions(RouterOptions):
    """How much probability a token's experts hold together.

    Attributes:
        p: share of the probability.
        most: limit of a token's experts; by default all.
    """

    p: float = 0.4
    most: int | None = None

    def check(self, num_experts: int) -> None:
        if not 0 < self.p <= 1:
            raise OptionError("p", f"{self.p:g} must lie in (0, 1].")
        if self.most is not None and not 1 <= self.most <= num_experts:
            raise OptionError("most", f"{self.most} must lie between 1 and num_experts ({num_experts}).")


@dataclass(frozen=True)
class ZeroComputationOptions(RouterOptions):
    """How many virtual experts there are of each kind.

    Attributes:
        zero: those that give nothing.
        identity: those that give the token itself.
        constant: those that give a learned vector.
    """

    zero: int = 1
    identity: int = 1
    constant: int = 2

    def kinds(self) -> list[SlotKind]:
        """The kind of each virtual expert, in order."""
        counts: dict[SlotKind, int] = {"zero": self.zero, "identity": self.identity, "constant": self.constant}
        return [kind for kind, count in counts.items() for _ in range(count)]

    def check(self, num_experts: int) -> None:
        for name in ("zero", "identity", "constant"):
            if getattr(self, name) < 0:
                raise OptionError(name, f"{getattr(self, name)} must not be negative: it is a number of virtual experts.")


ROUTER_OPTIONS: dict[str, type[RouterOptions]] = {
    "linear": RouterOptions,
    "modality": RouterOptions,
    "modality+shared": RouterOptions,
    "dtr": DTROptions,
    "dtr+shared": DTROptions,
    "fixed": FixedOptions,
    "shuffled": ShuffledOptions,
    "anyexperts": AnyExpertsOptions,
    "top_p": TopPOptions,
    "zero_computation": ZeroComputationOptions,
}
"""The options of each row of ``ROUTERS``, for a command line that has not loaded torch."""
