"""The load-balancing loss.

Implements: Eq. 12.
"""

from torch import Tensor

from evomoe.model.aux_losses.over_processes import summed
from evomoe.model.routing import LayerRecord
from evomoe.model.without_waiting import occurrences


def balance(record: LayerRecord) -> Tensor:
    """``E * sum_i F_i G_i`` of one layer: 1.0 when routing is uniform, E when one expert takes all; 0 of no tokens.

    F_i is the fraction of (token, slot) pairs sent to expert i, not differentiated; G_i the mean probability of expert i.
    Both are counted over the real tokens of a micro-batch, in all processes.
    """
    routing = record.routing
    E = routing.probs_TE.shape[1]
    chosen_E = occurrences(routing.index_TK, E).float()
    chosen_E, probs_E, tokens = summed(chosen_E, routing.probs_TE.sum(0), chosen_E.new_tensor(len(routing.probs_TE)))
    return E * (chosen_E / chosen_E.sum().clamp(min=1) * probs_E / tokens.clamp(min=1)).sum()
