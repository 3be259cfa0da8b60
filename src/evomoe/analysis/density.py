"""Gaussian kernel densities of a number per token, several kinds of tokens on one grid."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

GRID = 512
SHOWN = (0.5, 99.5)
"""Percentiles between which the grid lies: a few tokens far out would squeeze the others into one point of it."""
_FINEST = 1.5  # grid steps: a narrower kernel would fall between the points


def bandwidth(values_N: Tensor) -> float:
    """Silverman's rule, ``0.9 min(s, IQR / 1.349) N^(-1/5)``: 0 for values that do not vary, or one value."""
    if len(values_N) < 2:
        return 0.0
    low, high = values_N.double().quantile(torch.tensor([0.25, 0.75], dtype=torch.float64)).tolist()
    return 0.9 * min(values_N.double().std().item(), (high - low) / 1.349) * len(values_N) ** -0.2


def densities(samples: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]] | None:
    """The density of each sample (N,) that is not empty, by its name, on a grid (G,) that covers all of them.

    Each integrates to 1 over the grid. A kernel is as wide as ``bandwidth`` says for its sample, and at least 1.5 grid steps.
    None if there is nothing to tell apart: all samples are empty, or all values are one and the same.
    """
    values = {name: sample.double().cpu() for name, sample in samples.items() if len(sample)}
    ends = torch.tensor(SHOWN, dtype=torch.float64) / 100
    limits = [value_N.quantile(ends).tolist() for value_N in values.values()]
    low, high = min((pair[0] for pair in limits), default=0.0), max((pair[1] for pair in limits), default=0.0)
    if not high > low:
        return None
    finest = _FINEST * (high - low) / GRID
    widths = {name: max(bandwidth(value_N), finest) for name, value_N in values.items()}
    margin = 3 * max(widths.values())
    grid_G = torch.linspace(low - margin, high + margin, GRID, dtype=torch.float64)
    step = (grid_G[1] - grid_G[0]).item()
    found = {}
    for name, value_N in values.items():
        density_G = torch.exp(-0.5 * ((grid_G[:, None] - value_N) / widths[name]).square()).sum(-1)
        found[name] = density_G / (density_G.sum() * step)
    return grid_G, found


def overlap(first_N: Tensor, second_N: Tensor) -> float:
    """The integral of the smaller of two samples' densities: 1 for equal distributions, 0 for distributions apart.

    nan if a sample is empty.
    """
    if not len(first_N) or not len(second_N):
        return math.nan
    found = densities({"first": first_N, "second": second_N})
    if found is None:
        return 1.0
    grid_G, by_name = found
    smaller_G = torch.minimum(by_name["first"], by_name["second"])
    return (smaller_G.sum() * (grid_G[1] - grid_G[0])).item()
