"""Virtual experts: choices that a router has beside the real experts, and that run no network.

T tokens, D hidden, K slots per token, V virtual experts.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from evomoe.recipe.anyexperts_options import SlotKind


class VirtualExperts(nn.Module):
    """What the slots give that go to no network: nothing, the token itself, or a learned vector.

    Args:
        hidden_size: D.
        num_real: real experts, after which the virtual ones are numbered.
        kinds: of each virtual expert. A constant starts at zero.
    """

    def __init__(self, hidden_size: int, num_real: int, kinds: Sequence[SlotKind]) -> None:
        super().__init__()
        self.num_real, self.kinds = num_real, tuple(kinds)
        self.constants = nn.Parameter(torch.zeros(self.kinds.count("constant"), hidden_size)) if "constant" in kinds else None

    def __len__(self) -> int:
        return len(self.kinds)

    def outputs(self, x_TD: Tensor) -> list[Tensor]:
        """What each virtual expert gives for each token, (T, D), in order."""
        constants = iter(() if self.constants is None else self.constants)
        give: dict[str, Callable[[], Tensor]] = {
            "zero": lambda: torch.zeros_like(x_TD),
            "identity": lambda: x_TD,
            "constant": lambda: next(constants).to(x_TD.dtype).expand_as(x_TD),
        }
        return [give[kind]() for kind in self.kinds]

    def add(self, y_TD: Tensor, x_TD: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
        """Adds what the virtual slots give to the real experts' sum ``y_TD``."""
        if not set(self.kinds) - {"zero"}:
            return y_TD
        number_TK = index_TK - self.num_real
        is_virtual_TK = (number_TK >= 0) & (number_TK < len(self))
        weight_TV = weight_TK.new_zeros(len(x_TD), len(self))
        weight_TV = weight_TV.scatter_add(1, number_TK.clamp(0, len(self) - 1), weight_TK * is_virtual_TK)
        identities, constants = ([n for n, kind in enumerate(self.kinds) if kind == of] for of in ("identity", "constant"))
        if identities:
            y_TD = y_TD + x_TD * weight_TV[:, identities].sum(-1, keepdim=True).to(x_TD.dtype)
        if self.constants is not None:
            y_TD = y_TD + (weight_TV[:, constants] @ self.constants.float()).to(y_TD.dtype)
        return y_TD
