"""Means by group and their standard errors."""

import math
from collections import defaultdict
from collections.abc import Sequence

from evomoe.evaluation.base import Row


def error_of_mean(points: Sequence[float]) -> float:
    """The standard error of the mean of independent values: s / sqrt(n), 0 for fewer than two."""
    count = len(points)
    if count < 2:
        return 0.0
    mean = sum(points) / count
    return math.sqrt(sum((point - mean) ** 2 for point in points) / (count - 1) / count)


def accuracy_by_type(types: Sequence[str], points: Sequence[float]) -> dict[str, Row]:
    """Accuracy in percent and number of questions of each type, sorted by name."""
    groups: dict[str, list[float]] = defaultdict(list)
    for name, point in zip(types, points, strict=True):
        groups[name].append(point)
    return {name: {"accuracy": 100 * sum(group) / len(group), "questions": len(group)} for name, group in sorted(groups.items())}
