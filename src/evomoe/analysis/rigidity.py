"""Whether the router tells image from text tokens: pure functions of what it chose.

Implements: Section 1 (rigidity).

M = 2 modalities (text, image), E experts, T tokens, K experts per token. The overlap of the router's logits is in
``evomoe.analysis.density``.
"""

import math

import torch
from torch import Tensor


def entropy(share: Tensor) -> float:
    """Entropy of a distribution of any shape, in bits."""
    return torch.special.entr(share.double()).sum().item() / math.log(2)


def normalised_mutual_information(counts_ME: Tensor) -> float:
    """The share of the modality's entropy that the expert tells: 1 if it tells the modality, 0 if it tells nothing.

    Counts are finite, so that even a router which is blind to the modality would get a little more than 0; each entropy is
    corrected for that (Miller 1955: + (cells that were hit - 1) / 2N nats). nan if there is one modality only.
    """
    N, counts_ME = counts_ME.sum().item(), counts_ME.double()

    def corrected(counts: Tensor) -> float:
        return entropy(counts / N) + (counts.count_nonzero().item() - 1) / (2 * N * math.log(2))

    if counts_ME.sum(1).count_nonzero() < 2:
        return math.nan
    of_modality = corrected(counts_ME.sum(1))
    information = of_modality + corrected(counts_ME.sum(0)) - corrected(counts_ME)
    return min(max(information / of_modality, 0.0), 1.0)


def jensen_shannon(first_E: Tensor, second_E: Tensor) -> float:
    """Jensen-Shannon divergence of two loads, in bits: 0 if they are equal, 1 if no expert is in both.

    It is the mutual information of expert and modality, were there as many tokens of the one as of the other. nan if a load
    is all zero: a modality without tokens.
    """
    if not first_E.any() or not second_E.any():
        return math.nan
    return entropy((first_E + second_E) / 2) - (entropy(first_E) + entropy(second_E)) / 2


def changed_tokens(before_TK: Tensor, after_TK: Tensor, num_experts: int) -> Tensor:
    """Which tokens got other experts, (T,) bool; in which order a token's experts stand does not matter.

    An index of ``num_experts`` or above is a slot without an expert; all such are the same.
    """
    before_TK, after_TK = (index_TK.clamp(max=num_experts).sort(-1).values for index_TK in (before_TK, after_TK))
    return (before_TK != after_TK).any(-1)
