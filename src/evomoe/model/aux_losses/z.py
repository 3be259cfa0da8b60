"""Keeps the router's scores small, so that its softmax can still change its mind. The router z-loss of ST-MoE (arXiv 2202.08906)."""

from torch import Tensor

from evomoe.model.aux_losses.over_processes import mean
from evomoe.model.routing import LayerRecord


def z(record: LayerRecord) -> Tensor:
    """``mean over tokens of (log sum_e exp logit_e)^2`` of one layer: ``log(E)^2`` when all logits are 0; 0 of no tokens."""
    return mean(record.routing.logits_TE.logsumexp(-1).square())
