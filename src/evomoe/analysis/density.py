"""Gaussian kernel densities of a number per token, several kinds of tokens on one grid.

The numbers are router logits, whose tails can be long. So the kernels stand on the scale ``asinh(value / width)``: linear where
values are small beside the width, logarithmic beyond. The overlap of two distributions is the same on every such scale.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

GRID = 4096
LINEAR = 3.0
"""Spreads up to which the scale is as good as linear: a normal sample keeps its shape."""
_FINEST = 2.5  # grid steps: a narrower kernel would fall between the points


def percentiles(values_N: Tensor, which: tuple[float, float]) -> tuple[float, float]:
    """Two percentiles of some values."""
    low, high = values_N.double().quantile(torch.tensor(which, dtype=torch.float64) / 100).tolist()
    return low, high


def linear_width(samples: Sequence[Tensor]) -> float:
    """Three standard deviations of some samples (N,) together, as their quartiles have it: 3 IQR / 1.349.

    If half the values are one, it is three times the standard deviation itself.
    """
    values_N = torch.cat([*samples]).double()
    low, high = percentiles(values_N, (25, 75))
    return LINEAR * ((high - low) / 1.349 or values_N.std(correction=0).item())


def bandwidth(values_N: Tensor) -> float:
    """Silverman's rule, ``0.9 min(s, IQR / 1.349) N^(-1/5)``: 0 for values that do not vary, or one value."""
    low, high = percentiles(values_N, (25, 75))
    return 0.9 * min(values_N.double().std(correction=0).item(), (high - low) / 1.349) * len(values_N) ** -0.2


def densities(samples: Mapping[str, Tensor], width: float = 0.0) -> tuple[Tensor, dict[str, Tensor]] | None:
    """The density of each sample (N,) that is not empty, by its name, on a grid (G,) that covers all of them.

    A kernel is as wide as ``bandwidth`` says for its sample, and at least 2.5 grid steps.

    Args:
        samples: values by name.
        width: of the linear part of the scale; 0 for ``linear_width`` of all samples together.

    Returns:
        The grid's values, and for each sample the share of it around each of them: G shares that add up to 1. The grid is
        even on the scale asinh(value / width). None if there is nothing to tell apart: all samples are empty, or all values
        are one and the same.
    """
    found = {name: sample.double().cpu() for name, sample in samples.items() if len(sample)}
    width = width or (linear_width([*found.values()]) if found else 0.0)
    if not width:
        return None
    scaled = {name: torch.asinh(value_N / width) for name, value_N in found.items()}
    low, high = min(u_N.min().item() for u_N in scaled.values()), max(u_N.max().item() for u_N in scaled.values())
    if not high > low:
        return None
    widths = {name: max(bandwidth(u_N), _FINEST * (high - low) / GRID) for name, u_N in scaled.items()}
    margin = 6 * max(widths.values())  # what a kernel leaves beyond one end comes in again at the other
    low, high = low - margin, high + margin
    step = (high - low) / GRID
    frequency = torch.fft.rfftfreq(GRID, step, dtype=torch.float64)
    shares = {}
    for name, u_N in scaled.items():
        kernel = torch.exp(-0.5 * (2 * math.pi * widths[name] * frequency).square())  # the transform of a Gaussian
        smooth_G = torch.fft.irfft(torch.fft.rfft(torch.histc(u_N, GRID, low, high)) * kernel, n=GRID).clamp(min=0)
        shares[name] = smooth_G / smooth_G.sum()
    return width * torch.sinh(low + step * (torch.arange(GRID, dtype=torch.float64) + 0.5)), shares


def overlap(first_N: Tensor, second_N: Tensor) -> float:
    """The integral of the smaller of two samples' densities: 1 for equal distributions, 0 for distributions apart.

    nan if a sample is empty.
    """
    if not len(first_N) or not len(second_N):
        return math.nan
    found = densities({"first": first_N, "second": second_N})
    return torch.minimum(found[1]["first"], found[1]["second"]).sum().item() if found else 1.0
