"""Means by group and their standard errors."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

from evomoe.evaluation.benchmark import Row, Table


def error_of_mean(points: Sequence[float]) -> float:
    """The standard error of the mean of independent values: s / sqrt(n), 0 for fewer than two."""
    count = len(points)
    if count < 2:
        return 0.0
    mean = sum(points) / count
    return math.sqrt(sum((point - mean) ** 2 for point in points) / (count - 1) / count)


def bootstrap_error(
    units: Sequence[Sequence[float]], statistic: Callable[[Sequence[float]], float], samples: int = 1000
) -> float:
    """The standard error of a statistic of sums over units that are drawn anew, with replacement, from a fixed seed.

    Args:
        units: for each unit what it adds to the sums, such as one picture's true and false positives.
        statistic: from the sums to the number whose error is wanted.
        samples: how many times the units are drawn.
    """
    import numpy

    added = numpy.asarray(units, dtype=numpy.float64)
    draws = numpy.random.default_rng(0).multinomial(len(added), numpy.full(len(added), 1 / len(added)), size=samples)
    return float(numpy.std([statistic(sums) for sums in draws @ added], ddof=1))


def percent(count: float, total: float) -> float:
    """100 count / total; 0 of nothing is 0."""
    return count / total * 100 if total else 0.0  # in the official order, for equal digits


def accuracy(points: Sequence[float], counted: str = "questions") -> Row:
    """The mean in percent, and how many there are."""
    return {"accuracy": percent(sum(points), len(points)), counted: len(points)}


def accuracy_by_type(types: Sequence[str], points: Sequence[float], counted: str = "questions") -> Table:
    """Accuracy in percent and number of questions of each type, sorted by name."""
    groups: dict[str, list[float]] = defaultdict(list)
    for name, point in zip(types, points, strict=True):
        groups[name].append(point)
    return {name: accuracy(group, counted) for name, group in sorted(groups.items())}
