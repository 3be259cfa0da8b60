"""Keeps AnyExperts' importance centred, so that the mean number of slots stays in the middle of its range."""

from torch import Tensor

from evomoe.model.aux_losses.over_processes import mean
from evomoe.model.routing import LayerRecord
from evomoe.support.needs import needs


@needs("importance_T")
def importance(record: LayerRecord) -> Tensor:
    """``(mean s)^2`` of one layer, s a token's importance before the sigmoid: 0 where the mean is neither high nor low."""
    importance_T = record.routing.importance_T
    assert importance_T is not None  # the configuration refuses this loss with routers that do not estimate it
    return mean(importance_T).square()
