"""Holds the mean number of real experts per token at its budget."""

from torch import Tensor

from evomoe.model.aux_losses.over_processes import mean
from evomoe.model.routing import LayerRecord
from evomoe.support.needs import needs


@needs("excess_T")
def budget(record: LayerRecord) -> Tensor:
    """``(mean real experts / budget - 1)^2`` of one layer; the gradient is that of the number of slots, by importance."""
    excess_T = record.routing.excess_T
    assert excess_T is not None  # the configuration refuses this loss with routers that have no budget
    return mean(excess_T).square()
