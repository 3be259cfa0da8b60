"""One linear router for image tokens, one for text tokens.

Implements: Table 4 (b), Figure 4 (b).
"""

from functools import partial
from typing import Any

from torch import Tensor

from evomoe.model.modality import Modality
from evomoe.model.routers.linear import LinearRouter
from evomoe.model.routers.router import Router


class ModalityRouter(Router):
    """A linear map per modality: logits = W_V z for image tokens, W_T z for text tokens."""

    def __init__(self, hidden_size: int, num_experts: int, **options: Any) -> None:
        super().__init__(hidden_size, num_experts, **options)
        self.image = LinearRouter(hidden_size, num_experts)
        self.text = LinearRouter(hidden_size, num_experts)

    def forward(self, x_TD: Tensor, modality: Modality) -> Tensor:
        image, text = (partial(router.gate, x_TD) for router in (self.image, self.text))
        return modality.scored_by(image, text, both=self.training)
