"""The experts of one MoE layer, copies of a dense FFN, and the ways to run tokens through them.

T tokens, D hidden, E experts, K experts per token, F FFN width, S = T * K slots.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from evomoe.model.fixed_shapes import MOST_EXPERTS, MOST_TOKENS, compiles_an_answer, run_every_expert
from evomoe.model.grouped_experts import GroupedExperts
from evomoe.model.without_waiting import occurrences


class Slots:
    """The slots (T, K) in the order of their experts; those without an expert come last."""

    def __init__(self, index_TK: Tensor, num_experts: int) -> None:
        self.K = index_TK.shape[1]
        self.slot_of_S = torch.argsort(index_TK.reshape(-1), stable=True)
        self.count_E = occurrences(index_TK, num_experts)
        self.token_of_S = self.slot_of_S // self.K

    def weighted_sum(self, y_SD: Tensor, weight_TK: Tensor, like_TD: Tensor) -> Tensor:
        """Each token's outputs times their weights, added up; ``y_SD`` may end where slots without an expert begin."""
        slot_of_S, token_of_S = self.slot_of_S[: y_SD.shape[0]], self.token_of_S[: y_SD.shape[0]]
        y_SD = y_SD * weight_TK.reshape(-1)[slot_of_S].unsqueeze(-1)
        add = torch.index_copy if self.K == 1 else torch.index_add  # with one slot per token nothing needs adding
        return add(torch.zeros_like(like_TD), 0, token_of_S, y_SD)


class Experts(nn.ModuleList):
    """E copies of the dense model's own FFN, whatever its class.

    Two implementations give the same result: ``loop`` runs each expert's module on its contiguous segment of the sorted
    tokens (any device, precision, FFN; the reference); ``grouped_mm`` runs all experts in three grouped matrix products.

    Attributes:
        implementation: "auto", which takes ``grouped_mm`` where it pays, "loop" or "grouped_mm".
    """

    def __init__(self, experts: Sequence[nn.Module]) -> None:
        super().__init__(experts)
        self.implementation = "auto"
        self._packed: dict[str, Tensor] = {}

    @property
    def grouped(self) -> GroupedExperts:
        """The experts as ``grouped_mm`` takes them."""
        return GroupedExperts(self, self._packed)

    def weights(self, number: int) -> dict[str, Tensor]:
        """The parameters of one expert by name."""
        return dict(self[number].named_parameters())

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Weighted sum of the chosen experts' outputs.

        Args:
            hidden_states: (T, D).
            top_k_index: (T, K) int64; an index of E or above is a slot without an expert, which costs nothing.
            top_k_weights: (T, K).

        Returns:
            (T, D), in the dtype of ``hidden_states``.
        """
        x_TD, index_TK, weight_TK = hidden_states, top_k_index, top_k_weights.to(hidden_states.dtype)
        if compiles_an_answer() and len(self) <= MOST_EXPERTS and len(x_TD) <= MOST_TOKENS:
            return run_every_expert(self, x_TD, index_TK, weight_TK)
        if len(x_TD) == 1 and not self._groups(x_TD):
            return self._run_one_token(x_TD, index_TK, weight_TK)
        y_SD, slots = self.outputs(x_TD, index_TK)
        return slots.weighted_sum(y_SD, weight_TK, x_TD)

    def outputs(self, x_TD: Tensor, index_TK: Tensor) -> tuple[Tensor, Slots]:
        """The output of each slot, in slot order; those of slots without an expert come last, or are left out."""
        slots, run = Slots(index_TK, len(self)), self.grouped.run if self._groups(x_TD) else self._run_loop
        return run(x_TD, slots.token_of_S, slots.count_E), slots

    def _groups(self, x_TD: Tensor) -> bool:
        return self.implementation == "grouped_mm" or self.implementation == "auto" and x_TD.is_cuda and self.grouped.pays(x_TD)

    # How many tokens an expert gets is data. torch.compile leaves these two functions alone and compiles the experts in them.
    @torch.compiler.disable(recursive=False)
    def _run_one_token(self, x_TD: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
        (index_K,) = index_TK.tolist()
        outputs = [self[e](x_TD) * weight_TK[:, k : k + 1] for k, e in enumerate(index_K) if e < len(self)]
        return sum(outputs[1:], outputs[0]) if outputs else torch.zeros_like(x_TD)

    @torch.compiler.disable(recursive=False)
    def _run_loop(self, x_TD: Tensor, token_of_S: Tensor, count_E: Tensor) -> Tensor:
        """Outputs in slot order, of the slots that have an expert: those without come last and are left out."""
        # An expert that trains runs even on no rows: under DDP and FSDP every rank must touch the same parameters.
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        counts = count_E.tolist()
        segments = x_TD[token_of_S[: sum(counts)]].split(counts)
        outputs = [expert(segment) for expert, segment in zip(self, segments, strict=True) if trains or segment.shape[0]]
        return torch.cat(outputs) if outputs else x_TD[:0]

    def pack(self) -> None:
        """Lets ``grouped_mm`` run frozen experts without copies of their weights; see ``GroupedExperts.pack``."""
        self.grouped.pack()
