"""The experts of one MoE layer, copies of a dense FFN, and the ways to run tokens through them.

T tokens, D hidden, E experts, K experts per token, F FFN width, S = T * K slots.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Slots:
    """The slots (T, K) in the order of their experts; those without an expert come last."""

    def __init__(self, index_TK: Tensor, num_experts: int) -> None:
        self.K = index_TK.shape[1]
        self.slot_of_S = torch.argsort(index_TK.reshape(-1), stable=True)
        self.count_E = torch.bincount(index_TK.reshape(-1), minlength=num_experts)[:num_experts]
        self.token_of_S = self.slot_of_S // self.K

    def weighted_sum(self, y_SD: Tensor, weight_TK: Tensor, like_TD: Tensor) -> Tensor:
        """Each token's outputs times their weights, added up; ``y_SD`` may end where slots without an expert begin."""
        slot_of_S, token_of_S = self.slot_of_S[: y_SD.shape[0]], self.token_of_S[: y_SD.shape[0]]
        y_SD = y_SD * weight_TK.reshape(-1)[slot_of_S].unsqueeze(-1)
        add = torch.index_copy if self.K == 1 else torch.index_add  # with one slot per token nothing needs adding
        return add(torch.zeros_like(like_TD), 0, token_of_S, y_SD)


_MAPS = ("gate_proj", "up_proj", "down_proj")
"""The maps of a gated FFN, which ``grouped_mm`` knows."""


class Experts(nn.ModuleList):
    """E copies of the dense model's own FFN, whatever its class.

    Two implementations give the same result: ``loop`` runs each expert's module on its contiguous segment of the sorted
    tokens (any device, precision, FFN; the reference); ``grouped_mm`` runs all experts in three grouped matrix products
    (gated FFNs without biases). "auto" takes ``grouped_mm`` on CUDA in bfloat16 once frozen experts are packed.

    Attributes:
        implementation: "auto", "loop" or "grouped_mm".
    """

    def __init__(self, experts: Sequence[nn.Module]) -> None:
        super().__init__(experts)
        self.implementation = "auto"
        self._packed: dict[str, Tensor] = {}

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
        if len(x_TD) == 1 and not self._groups(x_TD):
            return self._run_one_token(x_TD, index_TK, weight_TK)
        y_SD, slots = self.outputs(x_TD, index_TK)
        return slots.weighted_sum(y_SD, weight_TK, x_TD)

    def outputs(self, x_TD: Tensor, index_TK: Tensor) -> tuple[Tensor, Slots]:
        """The output of each slot, in slot order; those of slots without an expert come last, or are left out."""
        slots, run = Slots(index_TK, len(self)), self._run_grouped_mm if self._groups(x_TD) else self._run_loop
        return run(x_TD, slots.token_of_S, slots.count_E), slots

    def _groups(self, x_TD: Tensor) -> bool:
        return self.implementation == "grouped_mm" or self.implementation == "auto" and self._grouped_mm_pays(x_TD)

    # How many tokens an expert gets is data. torch.compile leaves these two functions alone and compiles the experts in them.
    @torch.compiler.disable(recursive=False)
    def _run_one_token(self, x_TD: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
        (index_K,) = index_TK.tolist()
        if len(index_K) == 1 and index_K[0] < len(self):  # the usual case, in as few operations as can be
            return self[index_K[0]](x_TD) * weight_TK
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

    def _grouped_mm_pays(self, x_TD: Tensor) -> bool:
        return (
            x_TD.is_cuda
            and x_TD.dtype == torch.bfloat16
            and all(self._is_packed(name) for name in _MAPS)
            and not any(p.requires_grad for p in self.parameters())
        )

    def can_group(self) -> bool:
        """Whether ``grouped_mm`` can run these experts: gate/up/down maps without biases, widths that are multiples of 8.

        It came with torch 2.10.
        """
        if not hasattr(F, "grouped_mm"):
            return False
        names = {name for name, _ in self[0].named_parameters()}
        gated = names == {"gate_proj.weight", "up_proj.weight", "down_proj.weight"} and hasattr(self[0], "act_fn")
        return gated and all(size % 8 == 0 for size in self._map("gate_proj")[0].shape)

    def _run_grouped_mm(self, x_TD: Tensor, token_of_S: Tensor, count_E: Tensor) -> Tensor:
        if not self.can_group():
            raise ValueError(
                f"{type(self[0]).__name__} cannot run as grouped_mm (torch 2.10, gate/up/down without biases, widths in multiples of 8); "
                "set the experts' implementation to 'loop'."
            )
        ends_E = count_E.cumsum(0).to(torch.int32)
        has_expert_S1 = (torch.arange(len(token_of_S), device=x_TD.device) < ends_E[-1]).unsqueeze(-1)
        # The kernel leaves rows beyond the last group unwritten, outputs here and gradients of inputs alike: neither may get out.
        x_SD = torch.where(has_expert_S1, x_TD[token_of_S], 0)
        gate_EFD, up_EFD, down_EDF = (self._stacked(name) for name in _MAPS)
        gate_SF, up_SF = (F.grouped_mm(x_SD, map_EFD.mT, offs=ends_E) for map_EFD in (gate_EFD, up_EFD))
        activation: Any = self[0].act_fn  # a module or a function
        y_SD = F.grouped_mm(activation(gate_SF) * up_SF, down_EDF.mT, offs=ends_E)
        return torch.where(has_expert_S1, y_SD, 0)

    def pack(self) -> None:
        """Puts each map's weights of all experts, frozen and on their device, into one storage, of which they become views.

        ``grouped_mm`` needs them so, and no copy stays. Experts that ``grouped_mm`` cannot run, or that train, stay as they are.
        """
        if not self.can_group() or any(p.requires_grad for p in self.parameters()):
            return
        for name in _MAPS:
            if not self._is_packed(name):
                weights = self._map(name)
                self._packed[name] = torch.stack([weight.detach() for weight in weights])
                for weight, view in zip(weights, self._packed[name], strict=True):
                    weight.data = view

    def _map(self, name: str) -> list[nn.Parameter]:
        return [getattr(expert, name).weight for expert in self]

    def _is_packed(self, name: str) -> bool:
        packed = self._packed.get(name)
        return packed is not None and all(
            weight.data_ptr() == view.data_ptr() for weight, view in zip(self._map(name), packed, strict=True)
        )

    def _stacked(self, name: str) -> Tensor:
        """One map's weights of all experts, (E, ...)."""
        return self._packed[name] if self._is_packed(name) else torch.stack([*self._map(name)])
