"""The entropy losses of LIMoE: certain about each token, balanced over all of them, per modality.

Implements: Table 5 (f).
"""

import torch
from torch import Tensor

from evomoe.model.aux_losses.over_processes import summed
from evomoe.model.routing import LayerRecord


def local(record: LayerRecord) -> Tensor:
    """Per modality: mean entropy of a token's probabilities minus entropy of the mean probabilities; averaged.

    This is minus the mutual information of token and expert: 0 for a router that ignores its input, ``-log E`` at best.
    """
    probs_TE, is_image_T = record.routing.probs_TE, record.modality.is_image_T
    kind_2T = torch.stack([is_image_T, ~is_image_T]).to(probs_TE.dtype)
    entropy_2, probs_2E, tokens_2 = summed(kind_2T @ _entropy(probs_TE), kind_2T @ probs_TE, kind_2T.sum(-1))
    entropy_2, probs_2E = entropy_2 / tokens_2.clamp(min=1), probs_2E / tokens_2.clamp(min=1).unsqueeze(-1)
    return (entropy_2 - _entropy(probs_2E)).sum() / tokens_2.count_nonzero().clamp(min=1)


def _entropy(probs_xE: Tensor) -> Tensor:
    return torch.special.entr(probs_xE).sum(-1)
