"""The entropy losses of LIMoE: certain about each token, balanced over all of them, per modality.

Implements: Table 5 (f).
"""

import torch
from torch import Tensor

from evomoe.model.routing import LayerRecord


def local(record: LayerRecord) -> Tensor:
    """Per modality: mean entropy of a token's probabilities minus entropy of the mean probabilities; averaged.

    This is minus the mutual information of token and expert: 0 for a router that ignores its input, ``-log E`` at best.
    """
    probs_TE, is_image_T = record.routing.probs_TE, record.modality.is_image_T
    groups = [probs for probs in (probs_TE[is_image_T], probs_TE[~is_image_T]) if probs.shape[0]]
    return torch.stack([_entropy(probs).mean() - _entropy(probs.mean(0)) for probs in groups]).mean()


def _entropy(probs_xE: Tensor) -> Tensor:
    return torch.special.entr(probs_xE).sum(-1)
