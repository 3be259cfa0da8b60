"""The load-balancing loss.

Implements: Eq. 12.
"""

import torch
from torch import Tensor

from evomoe.model.routing import LayerRecord


def balance(record: LayerRecord) -> Tensor:
    """``E * sum_i F_i G_i`` of one layer: 1.0 when routing is uniform, E when one expert takes all; 0 of no tokens.

    F_i is the fraction of (token, slot) pairs sent to expert i, not differentiated; G_i the mean probability of expert i.
    Both are counted over the real tokens of this process's micro-batch.
    """
    routing = record.routing
    T, E = routing.probs_TE.shape
    fraction_E = torch.bincount(routing.index_TK[routing.index_TK < E], minlength=E).float()
    return E * (fraction_E / fraction_E.sum().clamp(min=1) * routing.probs_TE.sum(0) / max(1, T)).sum()
