"""One linear map for all tokens, the router of MoE-LLaVA.

Implements: Table 4 (a), Figure 4 (a).
"""

from typing import Any

from torch import Tensor

from evomoe.model.modality import Modality
from evomoe.model.routers.float32 import Float32Linear
from evomoe.model.routers.router import OwnOptions, Router


class LinearRouter(Router[OwnOptions]):
    """One linear map for image and text tokens alike: logits = W z."""

    def __init__(self, hidden_size: int, num_experts: int, **options: Any) -> None:
        super().__init__(hidden_size, num_experts, **options)
        self.gate = Float32Linear(hidden_size, num_experts, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.gate.draw(std=0.02)

    def forward(self, x_TD: Tensor, modality: Modality) -> Tensor:
        return self.gate(x_TD)
