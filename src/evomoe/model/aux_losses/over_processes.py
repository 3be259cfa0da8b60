"""Sums and means over the tokens of all processes that train on parts of one batch, so that a loss is what one process would find.

Every process must come here as often as the others.
"""

import torch
from torch import Tensor


def summed(*totals: Tensor) -> tuple[Tensor, ...]:
    """Totals, each added up over the processes, with their gradients; one exchange for all. As they are where nothing trains."""
    if not (torch.is_grad_enabled() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1):
        return totals
    from torch.distributed.nn.functional import all_reduce

    together = all_reduce(torch.cat([total.float().flatten() for total in totals]))
    parts = together.split([total.numel() for total in totals])
    return tuple(part.view(total.shape) for part, total in zip(parts, totals, strict=True))


def mean(values_T: Tensor) -> Tensor:
    """The mean over all tokens; 0 of none."""
    total, count = summed(values_T.sum(), values_T.new_tensor(len(values_T)))
    return total / count.clamp(min=1)
