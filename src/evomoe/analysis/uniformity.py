"""How alike the experts are: pure functions of their outputs, their weights, their effects on the loss and their answers.

Implements: Section 1 (uniformity of outputs).

E experts, T tokens, D hidden, Q questions.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def output_cka(outputs: Sequence[Tensor]) -> Tensor:
    """Linear CKA (Kornblith et al. 2019) between every two experts' outputs (T, D) on the same tokens: (E, E), 0 to 1.

    An expert whose output does not vary resembles nothing, not even itself: nan.
    """
    doubles = [out_TD.double().cpu() for out_TD in outputs]
    centred = [out_TD - out_TD.mean(0) for out_TD in doubles]
    varies = [c.norm() > 1e-6 * out_TD.norm() for c, out_TD in zip(centred, doubles, strict=True)]
    norms = [(c.T @ c).norm() if v else torch.tensor(torch.nan) for c, v in zip(centred, varies, strict=True)]
    return torch.stack(
        [
            torch.stack([(a.T @ b).norm() ** 2 / (norm_a * norm_b) for b, norm_b in zip(centred, norms, strict=True)])
            for a, norm_a in zip(centred, norms, strict=True)
        ]
    )


def output_cosine(outputs: Sequence[Tensor]) -> Tensor:
    """Cosine between every two experts' outputs (T, D) for the same token, mean over the tokens: (E, E), -1 to 1."""
    units_ETD = torch.stack([torch.nn.functional.normalize(out_TD.double().cpu(), dim=-1) for out_TD in outputs])
    return torch.einsum("etd,ftd->ef", units_ETD, units_ETD) / units_ETD.shape[1]


@torch.no_grad()
def weight_cosine(experts: Sequence[Sequence[Tensor]], start: Sequence[Tensor] | None = None) -> Tensor:
    """Cosine between every two experts' weights, or with ``start`` between their task vectors, weights - start: (E, E).

    Weights themselves are all near the dense model's, so that their cosine is near 1 whatever the experts do.

    Args:
        experts: the parameters of each expert, in one order.
        start: the dense FFN's parameters, in that order, before the experts went apart.

    Returns:
        nan for an expert that is where it started.
    """
    gram_EE = torch.zeros(len(experts), len(experts), dtype=torch.float64)
    for i, values in enumerate(zip(*experts, strict=True)):
        origin = start[i].float().cpu().flatten() if start is not None else 0.0
        vectors_EP = torch.stack([value.float().cpu().flatten() for value in values]) - origin
        gram_EE += (vectors_EP @ vectors_EP.T).double()
    norm_E = gram_EE.diagonal().sqrt()
    return gram_EE / torch.where(norm_E > 0, norm_E, torch.nan).outer(norm_E)


def effect_spread(effect_TE: Tensor, probs_TE: Tensor) -> tuple[Tensor, Tensor]:
    """The part of the experts' effects on the loss that tells them apart, and the whole: see ``symmetry_gradient``.

    Args:
        effect_TE: the loss's gradient at the layer's output times each expert's output: what the loss would change by if a
            little more of that expert were added for that token.
        probs_TE: the router's probabilities.

    Returns:
        Two sums over the tokens, of the variance and of the mean square of a token's effects under its probabilities.
    """
    mean_T1 = (probs_TE * effect_TE).sum(-1, keepdim=True)
    return (probs_TE * (effect_TE - mean_T1).square()).sum(), (probs_TE * effect_TE.square()).sum()


def symmetry_gradient(apart: float, whole: float) -> float:
    """How strongly the language loss asks the router to tell the experts apart: 0 for identical experts, at most 1.

    With the experts mixed by the router's probabilities p, the language loss's gradient at expert e's logit is
    ``p_e (effect_e - mean effect)``. This is its size in the softmax's own norm (each square over p_e) over the size that it
    would have without the mean. It does not depend on the gate, on K, or on the scale of loss and outputs.

    Args:
        apart, whole: the two sums of ``effect_spread``, over all tokens.
    """
    return math.sqrt(apart / whole) if whole else math.nan


def disagreement(answers: Sequence[Sequence[str]]) -> float:
    """The share of questions on which the experts, each alone, do not all answer the same.

    Args:
        answers: for each expert, its answers (Q,), in one order of questions.
    """
    rows = list(zip(*answers, strict=True))
    return sum(len(set(row)) > 1 for row in rows) / len(rows) if rows else math.nan


def mean_of_pairs(matrix_EE: Tensor) -> float:
    """The mean over two different experts of a matrix; nan where no two could be compared."""
    return matrix_EE[~torch.eye(len(matrix_EE), dtype=torch.bool)].nanmean().item()
