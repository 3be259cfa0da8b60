"""The experts of a model that was sparse before, which transformers keeps stacked.

T tokens, D hidden, E experts, K experts per token, S = T * K slots.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from evomoe.model.experts import Experts, Slots
from evomoe.model.fixed_shapes import compiles_an_answer


class StackedExperts(nn.Module):
    """The experts of a model that was sparse before, whose weights transformers keep stacked, (E, ...) each.

    Slots without an expert are taken out before transformers' implementation runs, whichever that is.

    Args:
        stacked: takes tokens (S, D), their experts (S, 1) and weights (S, 1).
    """

    def __init__(self, stacked: nn.Module) -> None:
        super().__init__()
        self.stacked = stacked
        self._count = len(next(stacked.parameters()))  # which may be empty between two uses

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> "Iterator[OneOfStacked]":
        return (self[e] for e in range(len(self)))

    def __getitem__(self, number: int) -> "OneOfStacked":
        return OneOfStacked(self.stacked, range(len(self))[number])

    def weights(self, number: int) -> dict[str, Tensor]:
        """As ``Experts.weights``; views of the stacked weights."""
        return {name: weight_E[number] for name, weight_E in self.stacked.named_parameters()}

    def pack(self) -> None:
        """Nothing: they are stacked."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """As ``Experts.forward``."""
        if compiles_an_answer():
            has_expert_TK = top_k_index < len(self)
            return self.stacked(hidden_states, top_k_index.where(has_expert_TK, 0), top_k_weights * has_expert_TK)
        y_SD, slots = self.outputs(hidden_states, top_k_index)
        return slots.weighted_sum(y_SD, top_k_weights.to(hidden_states.dtype), hidden_states)

    def outputs(self, x_TD: Tensor, index_TK: Tensor) -> tuple[Tensor, Slots]:
        """As ``Experts.outputs``."""
        slots = Slots(index_TK, len(self))
        expert_of_S = torch.arange(len(self), device=x_TD.device).repeat_interleave(slots.count_E)
        return _run_stacked(self.stacked, x_TD[slots.token_of_S[: len(expert_of_S)]], expert_of_S), slots


class OneOfStacked:
    """One expert alone, of weights that stay stacked: runs tokens (T, D)."""

    def __init__(self, stacked: nn.Module, number: int) -> None:
        self.stacked, self.number = stacked, number

    def __call__(self, x_TD: Tensor) -> Tensor:
        return _run_stacked(self.stacked, x_TD, torch.full((len(x_TD),), self.number, device=x_TD.device))


def _run_stacked(stacked: nn.Module, x_SD: Tensor, expert_of_S: Tensor) -> Tensor:
    return stacked(x_SD, expert_of_S.unsqueeze(-1), x_SD.new_ones(len(x_SD), 1))


AnyExperts = Experts | StackedExperts
"""Either kind: ``experts(x_TD, index_TK, weight_TK)``, ``experts[e](x_TD)``, ``experts.weights(e)``, ``len(experts)``."""
