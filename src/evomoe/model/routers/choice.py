"""How logits become probabilities, and what else takes part in the choice of experts in models that were trained sparse.

T tokens, E experts, N of them with the virtual ones, G groups.
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, distributed, nn

from evomoe.model.without_waiting import occurrences

SCORES: dict[str, Callable[[Tensor], Tensor]] = {"softmax": lambda logits_TE: logits_TE.softmax(-1), "sigmoid": torch.sigmoid}
"""Probabilities (T, E) of logits (T, E); those of "sigmoid", as in DeepSeek-V3, do not add up to 1."""


def hide_groups(choice_TE: Tensor, groups: int, open_groups: int, best: int) -> Tensor:
    """-inf for the experts outside a token's ``open_groups`` best groups, by the sum of each group's ``best`` best experts.

    DeepSeek-V2 takes a group's best expert, DeepSeek-V3 its two best.
    """
    if open_groups == groups:
        return choice_TE
    choice_TGE = choice_TE.unflatten(-1, (groups, -1))
    open_TK = choice_TGE.topk(best, dim=-1).values.sum(-1).topk(open_groups, dim=-1).indices
    is_open_TG = torch.zeros(choice_TGE.shape[:2], dtype=torch.bool, device=choice_TE.device).scatter(1, open_TK, True)
    return choice_TGE.masked_fill(~is_open_TG.unsqueeze(-1), float("-inf")).flatten(1)


class ChoiceBias(nn.Module):
    """Added to the probabilities where experts are chosen, but not where they are weighed.

    As in DeepSeek-V3, where it balances the experts, and in LongCat-Flash, where it also holds the share of virtual experts.

    Args:
        num_experts: N.
    """

    value_N: Tensor

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.register_buffer("value_N", torch.zeros(num_experts))
        self._counts_N: Tensor | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves with the model, but stays in float32, in which alone its small steps count."""
        before = self.value_N
        super()._apply(fn, recurse)
        if self.value_N.dtype != torch.float32:
            self.value_N = self.value_N.float() if before.is_meta else before.to(self.value_N.device)
        return self

    def count(self, index_TK: Tensor) -> None:
        """Notes which experts were chosen since the last ``move``."""
        counts_N = occurrences(index_TK, len(self.value_N))
        self._counts_N = counts_N if self._counts_N is None else self._counts_N + counts_N

    def move(self, rate: float, num_real: int, virtual_share: float) -> None:
        """Moves each real expert's bias by rate * (its fair share of the slots - its share of them); the virtual ones' stays.

        Counts are of all processes of a distributed run.
        """
        if self._counts_N is None:
            return
        counts_N, self._counts_N = self._counts_N.float(), None
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(counts_N)
        share_N = counts_N / counts_N.sum().clamp(min=1)
        step_N = rate * ((1 - virtual_share) / num_real - share_N)
        step_N[num_real:] = 0
        self.value_N = self.value_N + step_N
