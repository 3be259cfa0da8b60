"""Always the same expert: how each expert is scored alone.

Implements: Table 3 (no router).
"""

import torch
from torch import Tensor

from evomoe.modality import Modality
from evomoe.routers.base import Router


class FixedRouter(Router):
    """Sends every token to ``expert`` with probability 1. It has no parameters.

    Args:
        expert: 0 .. num_experts - 1; expert 0 is the paper's expert 1.

    Raises:
        ValueError: there is no such expert.
    """

    def __init__(self, hidden_size: int, num_experts: int, expert: int = 0) -> None:
        super().__init__(hidden_size, num_experts)
        if not 0 <= expert < num_experts:
            raise ValueError(f"router 'fixed': expert {expert} does not exist; choose 0 to {num_experts - 1}.")
        self.expert = expert

    def forward(self, x_TD: Tensor, modality: Modality) -> Tensor:
        # The lowest finite float32 instead of -inf: its softmax is exactly 0 as well, and products with 0 stay finite.
        logits_TE = torch.full((x_TD.shape[0], self.num_experts), torch.finfo(torch.float32).min, device=x_TD.device)
        logits_TE[:, self.expert] = 0.0
        return logits_TE
