"""Two rows of a table compared seed by seed: the mean difference, its 95 % confidence interval, and how a table shows both."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def paired_difference(ours: Sequence[float], baseline: Sequence[float]) -> tuple[float, float]:
    """The mean of the differences and the half width of its 95 % confidence interval (Student's t); infinite for one pair."""
    from scipy import stats  # takes a second, and not every table compares its rows

    differences = [one - other for one, other in zip(ours, baseline, strict=True)]
    if len(differences) < 2:
        return differences[0], math.inf
    t = round(float(stats.t.ppf(0.975, df=len(differences) - 1)), 3)  # as printed tables have it, and docs/results too
    return statistics.mean(differences), t * statistics.stdev(differences) / math.sqrt(len(differences))


def with_interval(mean: float, half: float) -> str:
    """A difference and its interval, as a table has them."""
    return f"{mean:+.2f}" + (f" [{mean - half:+.2f}, {mean + half:+.2f}]" if math.isfinite(half) else "")


def real_experts(seed: Mapping[str, Any]) -> float:
    """How many real experts a token had in an MoE layer, on average over the benchmarks.

    Args:
        seed: what was kept of a row's seed.
    """
    return statistics.mean(seed["experts_per_token"].values())
