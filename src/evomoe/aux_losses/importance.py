"""Keeps AnyExperts' importance centred, so that the mean number of slots stays in the middle of its range."""

from torch import Tensor

from evomoe.aux_losses.base import LayerRecord


def importance(record: LayerRecord) -> Tensor:
    """``(mean s)^2`` of one layer, s a token's importance before the sigmoid: 0 where the mean is neither high nor low.

    Raises:
        ValueError: the router estimates no importance.
    """
    importance_T = record.routing.importance_T
    if importance_T is None:
        raise ValueError("aux_losses: 'importance' is for router 'anyexperts'; this router estimates no importance.")
    return importance_T.mean().square()
