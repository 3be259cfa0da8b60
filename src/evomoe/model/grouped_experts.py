"""All experts of a layer in three grouped matrix products: of gated FFNs without biases. It came with torch 2.10.

S slots in the order of their experts, D hidden, E experts, F FFN width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_MAPS = ("gate_proj", "up_proj", "down_proj")
"""The maps of a gated FFN, which the product knows."""


class GroupedExperts:
    """The maps of experts, each kind in one storage once they are packed, and the product over them.

    Args:
        experts: one module each.
        packed: each map's weights of all experts by name, once they are in one storage.
    """

    def __init__(self, experts: nn.ModuleList, packed: dict[str, Tensor]) -> None:
        self.experts, self._packed = experts, packed

    def is_possible(self) -> bool:
        """Whether the product can run these experts: gate/up/down maps without biases, widths that are multiples of 8."""
        if not hasattr(F, "grouped_mm"):
            return False
        names = {name for name, _ in self.experts[0].named_parameters()}
        gated = names == {"gate_proj.weight", "up_proj.weight", "down_proj.weight"} and hasattr(self.experts[0], "act_fn")
        return gated and all(size % 8 == 0 for size in self._map("gate_proj")[0].shape)

    def pays(self, x_TD: Tensor) -> bool:
        """Whether it is faster than one expert after the other: on CUDA in bfloat16 once frozen experts are packed."""
        return (
            x_TD.is_cuda
            and x_TD.dtype == torch.bfloat16
            and all(self._is_packed(name) for name in _MAPS)
            and not any(p.requires_grad for p in self.experts.parameters())
        )

    def run(self, x_TD: Tensor, token_of_S: Tensor, count_E: Tensor) -> Tensor:
        """Outputs (S, D) in slot order; zero for slots without an expert, which come last.

        Raises:
            ValueError: the product cannot run these experts.
        """
        if not self.is_possible():
            raise ValueError(
                f"{type(self.experts[0]).__name__} cannot run as grouped_mm (torch 2.10, gate/up/down without biases, widths in "
                "multiples of 8); set the experts' implementation to 'loop'."
            )
        ends_E = count_E.cumsum(0).to(torch.int32)
        has_expert_S1 = (torch.arange(len(token_of_S), device=x_TD.device) < ends_E[-1]).unsqueeze(-1)
        # The kernel leaves rows beyond the last group unwritten, outputs here and gradients of inputs alike: neither may get out.
        x_SD = torch.where(has_expert_S1, x_TD[token_of_S], 0)
        gate_EFD, up_EFD, down_EDF = (self.stacked(name) for name in _MAPS)
        gate_SF, up_SF = (F.grouped_mm(x_SD, map_EFD.mT, offs=ends_E) for map_EFD in (gate_EFD, up_EFD))
        activation: Any = self.experts[0].act_fn  # a module or a function
        y_SD = F.grouped_mm(activation(gate_SF) * up_SF, down_EDF.mT, offs=ends_E)
        return torch.where(has_expert_S1, y_SD, 0)

    def pack(self) -> None:
        """Puts each map's weights of all experts, frozen and on their device, into one storage, of which they become views.

        The product needs them so, and no copy stays. Experts that it cannot run, or that train, stay as they are.
        """
        if not self.is_possible() or any(p.requires_grad for p in self.experts.parameters()):
            return
        for name in _MAPS:
            if not self._is_packed(name):
                weights = self._map(name)
                self._packed[name] = torch.stack([weight.detach() for weight in weights])
                for weight, view in zip(weights, self._packed[name], strict=True):
                    weight.data = view

    def stacked(self, name: str) -> Tensor:
        """One map's weights of all experts, (E, ...)."""
        return self._packed[name] if self._is_packed(name) else torch.stack([*self._map(name)])

    def _map(self, name: str) -> list[nn.Parameter]:
        return [getattr(expert, name).weight for expert in self.experts]

    def _is_packed(self, name: str) -> bool:
        packed = self._packed.get(name)
        return packed is not None and all(
            weight.data_ptr() == view.data_ptr() for weight, view in zip(self._map(name), packed, strict=True)
        )
