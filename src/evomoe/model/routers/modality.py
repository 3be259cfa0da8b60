"""One linear router for image tokens, one for text tokens.

Implements: Table 4 (b), Figure 4 (b).
"""

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
        logits_TE = x_TD.new_zeros(x_TD.shape[0], self.num_experts)
        for tokens, router in ((modality.image_tokens, self.image), (modality.text_tokens, self.text)):
            logits_TE = logits_TE.index_copy(0, tokens, router.gate(x_TD, tokens))
        return logits_TE
