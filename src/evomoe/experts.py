"""The experts of one MoE layer and the ways to run tokens through them.

T tokens, D hidden, E experts, K experts per token, F FFN width, S = T * K slots.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Experts(nn.ModuleList):
    """E copies of the dense model's own FFN, whatever its class.

    Two implementations give the same result: ``loop`` runs each expert's module on its contiguous segment of the sorted
    tokens (any device, precision, FFN; the reference); ``grouped_mm`` runs all experts in three grouped matrix products
    (gated FFNs without biases). "auto" takes ``grouped_mm`` on CUDA in bfloat16 while the experts are frozen.
    """

    implementation = "auto"

    def __init__(self, experts: Sequence[nn.Module]) -> None:
        super().__init__(experts)
        self._packed: dict[str, Tensor] = {}

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
        T, K = index_TK.shape
        if self.implementation == "grouped_mm" or self.implementation == "auto" and self._grouped_mm_pays(x_TD):
            out_of = self._run_grouped_mm
        elif T == 1:
            return self._run_one_token(x_TD, index_TK, weight_TK)
        else:
            out_of = self._run_loop
        slot_of_S = torch.argsort(index_TK.reshape(-1), stable=True)
        count_E = torch.bincount(index_TK.reshape(-1), minlength=len(self))[: len(self)]
        token_of_S = slot_of_S // K
        y_SD = out_of(x_TD, token_of_S, count_E)
        slot_of_S, token_of_S = slot_of_S[: y_SD.shape[0]], token_of_S[: y_SD.shape[0]]
        y_SD = y_SD * weight_TK.reshape(-1)[slot_of_S].unsqueeze(-1)
        add = torch.index_copy if K == 1 else torch.index_add  # with one slot per token nothing needs adding
        return add(torch.zeros_like(x_TD), 0, token_of_S, y_SD)

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
            and self.can_group()
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
        return gated and all(size % 8 == 0 for size in self[0].gate_proj.weight.shape)

    def _run_grouped_mm(self, x_TD: Tensor, token_of_S: Tensor, count_E: Tensor) -> Tensor:
        if not self.can_group():
            raise ValueError(
                f"{type(self[0]).__name__} cannot run as grouped_mm (torch 2.10, gate/up/down without biases, widths in multiples of 8); "
                "set Experts.implementation = 'loop'."
            )
        x_SD, ends_E = x_TD[token_of_S], count_E.cumsum(0).to(torch.int32)
        gate_SF = F.grouped_mm(x_SD, self._weights("gate_proj").mT, offs=ends_E)
        up_SF = F.grouped_mm(x_SD, self._weights("up_proj").mT, offs=ends_E)
        y_SD = F.grouped_mm(self[0].act_fn(gate_SF) * up_SF, self._weights("down_proj").mT, offs=ends_E)
        # Rows beyond the last group are left unwritten by the kernel.
        has_expert_S = torch.arange(x_SD.shape[0], device=x_SD.device) < ends_E[-1]
        return torch.where(has_expert_S.unsqueeze(-1), y_SD, 0)

    def _weights(self, name: str) -> Tensor:
        """One map's weights of all experts, stacked. Frozen experts become views of one storage: no copy stays."""
        weights = [getattr(expert, name).weight for expert in self]
        if any(weight.requires_grad for weight in weights):
            return torch.stack(weights)
        packed = self._packed.get(name)
        if packed is None or any(w.data_ptr() != p.data_ptr() for w, p in zip(weights, packed, strict=True)):
            packed = torch.stack([weight.detach() for weight in weights])
            for weight, view in zip(weights, packed, strict=True):
                weight.data = view
            self._packed[name] = packed
        return packed
