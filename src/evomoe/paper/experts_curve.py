"""The study of AnyExperts: score against real experts per token, as a picture by kind of task, and in numbers beside a fixed top-k."""

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from evomoe.analysis.plots import drawing
from evomoe.evaluation.average import share_in_average
from evomoe.paper.results import BENCHMARKS, paired_difference, real_experts, with_interval
from evomoe.tables import markdown_table

GROUPS = {
    "all seven": tuple(BENCHMARKS.values()),
    "image-heavy: VQAv2, GQA, POPE, MME": tuple(BENCHMARKS[column] for column in ("VQAv2", "GQA", "POPE", "MME")),
    "text-dense: TextVQA, ScienceQA": tuple(BENCHMARKS[column] for column in ("TextVQA", "SQA")),
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
MARKS = {4.8: "-40 %", 7.2: "-10 %"}
"""Real experts of the paper's full model, and the share that it does without: on images and video, on text in pictures."""
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
        "Less the top-k that was trained at 8 and is asked with as many real experts, which between two whole numbers is taken to lie "
        "on the line from one to the other:"
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


@drawing
def plot_experts_curve(plt, found: Mapping[str, Any]):
    """A panel for each kind of task.

    Args:
        found: what ``evomoe table anyexperts --results`` kept.
    """
    rows = found["rows"]
    figure, axes = plt.subplots(1, len(GROUPS), figsize=(13, 4.6), layout="constrained")
    colours = iter(plt.get_cmap("tab20").colors)
    looks = {label: next(colours) for label in [*CURVES, *POINTS]}
    for axis, (title, group) in zip(axes, GROUPS.items(), strict=True):
        for label, names in {**CURVES, **POINTS}.items():
            if known := [point(rows[name], group) for name in names if name in rows]:
                x, y, spread = zip(*sorted(known), strict=True)
                line = "-" if label in CURVES else "none"
                axis.errorbar(x, y, spread, ls=line, marker="o" if label in CURVES else "D", ms=5, capsize=2, color=looks[label],
                              elinewidth=0.8, label=label)  # fmt: skip
        for experts, share in MARKS.items():
            axis.axvline(experts, color="0.6", ls=":", lw=1)
            axis.text(
                experts, 1.0, share, transform=axis.get_xaxis_transform(), ha="center", va="bottom", fontsize=8, color="0.4"
            )
        axis.set_title(title, pad=16)
        axis.set_xlabel("real experts per token, of 16")
    axes[0].set_ylabel("score, mean ± standard deviation over the seeds")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)
    return figure
