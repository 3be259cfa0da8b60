"""The study of AnyExperts as a picture: score against real experts per token, by kind of task.

It is drawn of numbers that were kept, not of checkpoints, so `evomoe plot` does not have it. `make docs` draws it.
"""

from collections.abc import Mapping
from typing import Any

from evomoe.analysis.plots import drawing
from evomoe.paper.tables.experts_curve import CURVES, GROUPS, POINTS, point

MARKS = {4.8: "-40 %", 7.2: "-10 %"}
"""Real experts of the paper's full model, and the share that it does without: on images and video, on text in pictures."""


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
