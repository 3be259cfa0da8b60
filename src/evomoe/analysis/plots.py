"""The pictures: expert load, router logits by modality, scores under shuffles, distances over the steps. Needs matplotlib.

Implements: Figure 1 (drawings), Figure 5 (drawing).

A picture shows one model, or several side by side. It is written to every path that is given, in the format of its ending.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomoe.analysis.density import densities, linear_width, percentiles
from evomoe.analysis.recording import MODALITIES
from evomoe.analysis.routing import RoutingStatistics

_COLOURS = {"text": "#d55e00", "image": "#0072b2"}  # Okabe and Ito's: told apart by the colour-blind too
_STYLE = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "evomoe",  # the same picture is the same file
    "svg.fonttype": "none",
}
_SHOWN = (1, 99)
"""Percentiles of the router's logits that are drawn: a few tokens far out would squeeze the others together."""
_MOST_ROWS, _MOST_COLUMNS, _MOST_POINTS = 4, 8, 160
"""Layers and experts of which the router's logits are drawn, evenly spaced, for more are not readable; points of a curve."""


def load_pyplot():
    """matplotlib's pyplot, for drawing into files.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: pip install 'evomoe[plots]'.") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def drawing(draw: Callable[..., Any]) -> Callable[..., None]:
    """Makes ``draw(plt, what, ...) -> figure`` a function ``draw(what, *paths, ...)`` that writes the figure."""

    @functools.wraps(draw)
    def drawn(what: Any, *paths: str | Path, **options: Any) -> None:
        plt = load_pyplot()
        with plt.rc_context(_STYLE):
            _save(draw(plt, what, **options), *paths)

    return drawn


def _save(figure, *paths: str | Path) -> None:
    for path in paths:
        figure.savefig(path, dpi=150, metadata={"Date": None} if Path(path).suffix == ".svg" else None)
    load_pyplot().close(figure)


def _expert_colour(plt, number: int, E: int):
    """The colour of expert 1, 2, ... E: the same in every picture."""
    return plt.get_cmap("viridis")((number - 1) / max(E - 1, 1) * 0.75)  # its last shades are too light for a line


def _side_by_side(figure, named: Mapping[str, Any]) -> list:
    """A part of the figure for each model, with its name above."""
    parts = figure.subfigures(1, len(named), squeeze=False, wspace=0.04)[0]
    for part, name in zip(parts, named, strict=True):
        if name:
            part.suptitle(name, fontweight="bold", fontsize=11)
    return list(zip(parts, named.values(), strict=True))


@drawing
def plot_load(plt, named: Mapping[str, RoutingStatistics]):
    """Stacked bars: how each MoE layer divides its text and its image tokens among the experts.

    Args:
        named: statistics by the name above them; an empty name is none.
    """
    widest = max(len(statistics.layers) for statistics in named.values())
    width = len(named) * len(MODALITIES) * max(2.2, 0.5 + 0.15 * widest) + 1.6
    figure = plt.figure(figsize=(width, 3.6), layout="constrained")
    for part, statistics in _side_by_side(figure, named):
        positions, E = range(len(statistics.layers)), statistics.experts
        axes = part.subplots(1, len(MODALITIES), sharey=True)
        for m, (axis, modality) in enumerate(zip(axes, MODALITIES, strict=True)):
            below = [0.0] * len(positions)
            for e in range(E):
                share, colour = (100 * statistics.load_LME[:, m, e]).tolist(), _expert_colour(plt, e + 1, E)
                bars = axis.bar(positions, share, bottom=below, color=colour, width=0.8, label=statistics.names[e])
                if len(positions) <= 8:
                    ink = "white" if sum(colour[:3]) < 1.7 else "black"
                    labels = [f"{value:.0f}" if value >= 8 else "" for value in share]
                    axis.bar_label(bars, labels, label_type="center", color=ink, fontsize=8)
                below = [b + s for b, s in zip(below, share, strict=True)]
            axis.set(title=f"{modality} tokens", xlabel="decoder layer", ylim=(0, 100))
            every = math.ceil(len(positions) / 10)
            axis.set_xticks(list(positions)[::every], [str(layer) for layer in statistics.layers[::every]])
        axes[0].set_ylabel("share of slots, %")
    handles, labels = figure.subfigs[0].axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center", ncols=math.ceil(len(labels) / 12))
    return figure


@drawing
def plot_logits(plt, named: Mapping[str, RoutingStatistics]):
    """Densities of the router's logits for text and image tokens, and their overlap: a row per MoE layer, a column per expert.

    Of many layers and experts some are drawn, evenly spaced.

    Args:
        named: statistics by the name above them; an empty name is none.
    """
    rows = min(_MOST_ROWS, max(len(statistics.layers) for statistics in named.values()))
    columns = sum(min(_MOST_COLUMNS, statistics.experts) for statistics in named.values())
    figure = plt.figure(figsize=(max(5.0, 1.75 * columns + 0.4), 1.35 * rows + 1.3), layout="constrained")
    titled = {_with_overlap(name, statistics): statistics for name, statistics in named.items()}
    for part, statistics in _side_by_side(figure, titled):
        chosen = _spaced(len(statistics.layers), _MOST_ROWS)
        experts = _spaced(statistics.experts, _MOST_COLUMNS)
        axes = part.subplots(len(chosen), len(experts), squeeze=False, sharex="row")
        for row, i in zip(axes, chosen, strict=True):
            _draw_layer(row, statistics, i, experts)
        for e, axis in zip(experts, axes[0], strict=True):
            axis.set_title(statistics.names[e], color=_expert_colour(plt, e + 1, statistics.experts), fontweight="bold")
    handles = {
        label: line for axis in figure.findobj(plt.Axes) for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    below = f"router logit, from the {_SHOWN[0]}st to the {_SHOWN[1]}th percentile, on an asinh scale; numbers: overlap of the densities"
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, title=below)
    return figure


def _with_overlap(name: str, statistics: RoutingStatistics) -> str:
    mean = statistics.overlap_LE.nanmean().item()
    return ": ".join(filter(None, [name, "" if math.isnan(mean) else f"mean overlap {mean:.2f}"]))


def _spaced(count: int, most: int) -> list[int]:
    """All of so many indices, or the ``most`` that are evenly spaced."""
    shown = min(most, count)
    return [i * (count - 1) // max(shown - 1, 1) for i in range(shown)]


def _draw_layer(axes: Sequence[Any], statistics: RoutingStatistics, i: int, experts: Sequence[int]) -> None:
    """One row of ``plot_logits``: the i-th MoE layer, one of the experts per axis."""
    samples = {e: {name: statistics.logits[i][name][:, e] for name in MODALITIES} for e in experts}
    columns = [values for by_name in samples.values() for values in by_name.values() if len(values)]
    limits, width = [percentiles(values, _SHOWN) for values in columns], linear_width(columns)
    low, high = min(pair[0] for pair in limits), max(pair[1] for pair in limits)
    for e, axis in zip(experts, axes, strict=True):
        found = densities(samples[e], width)
        if found:
            grid_G, by_name = found
            inside = ((grid_G >= low) & (grid_G <= high)).nonzero().squeeze(-1)
            inside = inside[:: max(1, len(inside) // _MOST_POINTS)]
            for name, density_G in by_name.items():
                axis.plot(grid_G[inside], density_G[inside], color=_COLOURS[name], linewidth=1.2, label=f"{name} tokens")
                axis.fill_between(grid_G[inside], density_G[inside], color=_COLOURS[name], alpha=0.3, linewidth=0)
        value = statistics.overlap_LE[i, e].item()
        if not math.isnan(value):
            axis.text(0.98, 0.96, f"{value:.2f}", transform=axis.transAxes, ha="right", va="top", fontsize=9)
        axis.set(ylim=(0, 1.2 * axis.dataLim.ymax if axis.lines else None), yticks=[])
        axis.spines["left"].set_visible(False)
        axis.tick_params(labelsize=8)
    if high > low:
        axes[0].set_xscale("asinh", linear_width=width)
        axes[0].set_xlim(low, high)
        ticks = _ticks(low, high)
        axes[0].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes[0].minorticks_off()
    axes[0].set_ylabel(f"layer {statistics.layers[i]}")


def _ticks(low: float, high: float) -> list[float]:
    """Zero and a round number on either side of it, as far as they lie in the interval; or its ends if zero does not."""
    if not low <= 0 <= high:
        return [float(f"{end:.3g}") for end in (low, high)]
    side = float(f"{0.7 * max(-low, high):.0e}")
    return [tick for tick in (-side, 0.0, side) if low <= tick <= high]


@dataclass(frozen=True)
class ShuffleScores:
    """A model's score with its own routers, and with shuffled ones."""

    own: float
    shuffled: list[float]

    def mean_change(self) -> float:
        """Mean over the shuffles of the score's change."""
        return sum(self.shuffled) / len(self.shuffled) - self.own


@drawing
def plot_shuffles(plt, named: Mapping[str, ShuffleScores], score: str = "score"):
    """Bars: the score with the model's own routers, then with each shuffle of them.

    Args:
        named: scores by the name above them.
        score: what the scores are, for the axis.
    """
    most = max(len(scores.shuffled) for scores in named.values()) + 1
    figure = plt.figure(figsize=(len(named) * max(3.4, 0.5 * most + 0.6), 3.4), layout="constrained")
    top = max(max(scores.own, *scores.shuffled) for scores in named.values())
    for part, scores in _side_by_side(figure, named):
        axis, values = part.subplots(), [scores.own, *scores.shuffled]
        axis.bar(range(len(values)), values, width=0.8, color=["#0072b2"] + ["#9ac7e4"] * len(scores.shuffled))
        for position, value in enumerate(values):  # at the foot, where no line crosses them
            ink = "black" if position else "white"
            axis.text(position, 0.02 * top, f"{value:.1f}", ha="center", va="bottom", fontsize=9, color=ink)
        axis.axhline(scores.own, color="#0072b2", linewidth=1, linestyle="--", zorder=0)
        axis.set_xticks(range(len(values)), ["own", *(str(n) for n in range(1, len(values)))])
        axis.set(xlabel="router, and its shuffles", ylim=(0, 1.05 * top))
        axis.set_title(f"mean change {scores.mean_change():+.2f}")
    figure.subfigs[0].axes[0].set_ylabel(score)
    return figure


@drawing
def plot_distances(plt, metrics: Sequence[dict[str, Any]]):
    """Relative distance of each evolved expert from expert 1 over the steps of Stage II."""
    lines = [entry for entry in metrics if any(key.startswith("distance/") for key in entry)]
    if not lines:
        raise ValueError("These metrics hold no distances: they are not of a run with Stage II.")
    numbers = [int(key.removeprefix("distance/expert")) for key in lines[0] if key.startswith("distance/")]
    figure, axis = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
    steps = [entry["step"] for entry in lines]
    for number in numbers:
        distances = [entry[f"distance/expert{number}"] for entry in lines]
        axis.plot(steps, distances, label=f"expert {number}", color=_expert_colour(plt, number, max(numbers)))
    axis.axhline(1, color="grey", linestyle="--", linewidth=1, label="as far as expert 1\nitself moved")
    axis.set(
        title="How far the evolved experts are from expert 1",
        xlabel="step of Stage II",
        ylabel="distance to expert 1 /\ndistance expert 1 has moved",
        ylim=(0, None),
    )
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center")
    return figure
