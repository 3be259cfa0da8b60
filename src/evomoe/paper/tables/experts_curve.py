"""The study of AnyExperts: score against real experts per token, by kind of task, beside a fixed top-k."""

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from evomoe.evaluation.average import share_in_average
from evomoe.paper.tables.comparison import paired_difference, real_experts, with_interval
from evomoe.paper.tables.table import IN_SMALL
from evomoe.support.text import markdown_table

GROUPS = {
    "all seven": tuple(IN_SMALL.values()),
    "image-heavy: VQAv2, GQA, POPE, MME": tuple(IN_SMALL[column] for column in ("VQAv2", "GQA", "POPE", "MME")),
    "text-dense: TextVQA, ScienceQA": tuple(IN_SMALL[column] for column in ("TextVQA", "SQA")),
}
ANY, FIXED = "AnyExperts, trained at 8", "top-k, trained at 8"
CURVES = {
    ANY: ("any8-at4.8", "any8-at5.6", "any8-at6.4", "any8-at7.2", "any8-at8", "any8"),
    FIXED: ("top8-at4", "top8-at5", "top8-at6", "top8-at7", "top8"),
}
POINTS = {
    "AnyExperts, importance shuffled": ("any8-shuffled", "any8-shuffled-at4.8"),
    "AnyExperts, trained at 4.8": ("any4.8",),
    "top-5": ("top5",),
    "identity": ("identity",),
    "constants": ("constant",),
    "no cap": ("expectation",),
    "cap by batch": ("batch",),
    "top-p": ("top_p",),
    "zero-computation": ("zero_computation",),
}
NEAR = 0.05
"""How near a number of real experts comes to the one that was asked for."""


def point(row: Mapping[str, Any], group: Sequence[str]) -> tuple[float, float, float]:
    """Mean real experts per token, mean score (MME / 20) and its standard deviation over the seeds, of a row on some benchmarks."""
    experts, scores = zip(*(_point(seed, group) for seed in row["seeds"].values()), strict=True)
    return statistics.mean(experts), statistics.mean(scores), statistics.stdev(scores) if len(scores) > 1 else 0.0


def _point(seed: Mapping[str, Any], group: Sequence[str]) -> tuple[float, float]:
    experts = statistics.mean(seed["experts_per_token"][name] for name in group)
    return experts, statistics.mean(share_in_average(name, seed["scores"][name]) for name in group)


def against_fixed(found: Mapping[str, Any], groups: Mapping[str, Sequence[str]] = GROUPS) -> str:
    """Each row's score less that of the top-k that was trained at 8 and is asked with as many real experts: mean and 95 % interval.

    Between its points, and up to NEAR beyond the last one, that is the line through them, seed by seed; seeds of a row that
    lie outside are left out.

    Args:
        found: what ``evomoe table anyexperts --results`` kept.
        groups: benchmarks by what they are called; each is a column.

    Returns:
        Markdown; empty if no row can be compared.
    """
    rows, lines = found["rows"], []
    for name in (name for names in (CURVES[ANY], *POINTS.values()) for name in names if name in rows):
        compared = [_beside_line(rows, rows[name], group) for group in groups.values()]
        if any(compared):
            cells = [with_interval(*paired_difference(*zip(*pairs, strict=True))) if pairs else "" for pairs in compared]
            lines.append([name, f"{statistics.mean(map(real_experts, rows[name]['seeds'].values())):.2f}", *cells])
    if not lines:
        return ""
    title = (
        "Less the top-k that was trained at 8 and is asked with as many real experts. Between two whole numbers its score is taken "
        "to lie on the line from one to the other:"
    )
    return f"{title}\n\n" + markdown_table(["row", "real experts", *groups], lines)


def _beside_line(rows: Mapping[str, Any], row: Mapping[str, Any], group: Sequence[str]) -> list[tuple[float, float]]:
    """By seed, a row's score and the fixed top-k's with as many real experts."""
    pairs = []
    for seed, one in row["seeds"].items():
        experts, score = _point(one, group)
        known = [rows[other]["seeds"].get(seed) for other in CURVES[FIXED] if other in rows]
        points = sorted(_point(other, group) for other in known if other)
        if points and points[0][0] <= experts <= points[-1][0] + NEAR:
            pairs.append((score, _interpolated(points, experts)))
    return pairs


def _interpolated(points: Sequence[tuple[float, float]], x: float) -> float:
    """Between the points, which are in order; beyond the last one, as there."""
    for (x0, y0), (x1, y1) in pairwise(points):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[-1][1]
