"""A contrastive (NCE) loss between experts.

Implements: Table 5 (e).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from evomoe.model.routing import LayerRecord
from evomoe.support.needs import needs

_TOKENS = 64
_TEMPERATURE = 0.1


@needs("experts")
def contrastive(record: LayerRecord) -> Tensor:
    """InfoNCE over experts: an expert's outputs should resemble its own outputs on other tokens more than other experts'.

    The paper names the loss and no formula. Here all experts run on up to 64 tokens of the layer, evenly spaced; each
    expert's mean output over the even ones is matched with its mean output over the odd ones, the other experts' being the
    negatives. ``log E`` when the experts are equal. It has a gradient only while experts train.
    """
    T = record.x_TD.shape[0]
    tokens = torch.linspace(0, T - 1, steps=min(T, _TOKENS) // 2 * 2, device=record.x_TD.device).long()
    if tokens.shape[0] < 2:
        return record.x_TD.new_zeros((), dtype=torch.float32)
    out_END = torch.stack([expert(record.x_TD[tokens]) for expert in record.experts]).float()
    query_ED, key_ED = (F.normalize(half_END.mean(1), dim=-1) for half_END in (out_END[:, ::2], out_END[:, 1::2]))
    similarity_EE = query_ED @ key_ED.T / _TEMPERATURE
    return F.cross_entropy(similarity_EE, torch.arange(similarity_EE.shape[0], device=similarity_EE.device))
