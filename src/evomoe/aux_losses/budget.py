"""Holds the mean number of real experts per token at its budget."""

from torch import Tensor

from evomoe.aux_losses.base import LayerRecord


def budget(record: LayerRecord) -> Tensor:
    """``(mean real experts / budget - 1)^2`` of one layer; the gradient is that of the number of slots, by importance.

    Raises:
        ValueError: the router has no budget.
    """
    excess = record.routing.excess
    if excess is None:
        raise ValueError("aux_losses: 'budget' is for router 'anyexperts'; this router chooses a fixed number of experts.")
    return excess.square()
