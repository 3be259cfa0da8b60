"""How evenly the tokens are spread over the experts: pure functions of the load.

Implements: Section 1 (balance).

E experts; a load (..., E) holds each expert's share of the routed slots and sums to 1.
"""

import torch
from torch import Tensor


def load(counts: Tensor) -> Tensor:
    """Each expert's share, (..., E), of counted slots (..., E); zeros where nothing was counted."""
    return counts.double() / counts.sum(-1, keepdim=True).clamp(min=1)


def effective_experts(load: Tensor) -> Tensor:
    """exp(entropy), (...): E when all experts get the same, 1 when one gets all."""
    return torch.special.entr(load).sum(-1).exp()


def coefficient_of_variation(load: Tensor) -> Tensor:
    """Standard deviation over mean, (...): 0 when all experts get the same, sqrt(E - 1) when one gets all."""
    return load.std(-1, correction=0) / load.mean(-1)


def dead_experts(load: Tensor) -> Tensor:
    """How many experts get less than a tenth of an equal share, (...)."""
    return (load < 1 / (10 * load.shape[-1])).sum(-1)
