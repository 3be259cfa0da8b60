"""The pictures of a run: expert load, router logits by modality, distances over the steps. Needs matplotlib.

Implements: Figure 1 (drawing of b), Figure 5 (drawing).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evomoe.analysis.routing import MODALITIES, RoutingStatistics

_COLOURS = {"text": "#d95f02", "image": "#1b9e77"}
_SHOWN = (1, 99)
"""Percentiles of the router logits that are drawn: a few tokens far out would squeeze the others into a line."""


def _pyplot():
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: pip install 'evomoe[plots]'.") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _expert_colour(number: int, E: int):
    """The colour of expert 1, 2, ... E: the same in every picture."""
    return _pyplot().get_cmap("viridis")((number - 1) / max(E - 1, 1) * 0.9)  # its last shades are too light for a line


def plot_load(statistics: RoutingStatistics, path: str | Path) -> None:
    """Stacked bars: how each MoE layer divides its image and its text tokens among the experts."""
    plt = _pyplot()
    E = statistics.load_LME.shape[-1]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    positions = range(len(statistics.layers))
    for m, (axis, modality) in enumerate(zip(axes, MODALITIES, strict=True)):
        below = [0.0] * len(statistics.layers)
        for e in range(E):
            share = (100 * statistics.load_LME[:, m, e]).tolist()
            axis.bar(positions, share, bottom=below, color=_expert_colour(e + 1, E), width=0.7, label=f"expert {e + 1}")
            below = [b + s for b, s in zip(below, share, strict=True)]
        axis.set(title=f"{modality} tokens", xlabel="decoder layer", ylim=(0, 100))
        axis.set_xticks(list(positions), [str(layer) for layer in statistics.layers])
    axes[0].set_ylabel("share of tokens, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    _save(figure, path)


def plot_logits(statistics: RoutingStatistics, path: str | Path) -> None:
    """Densities of the router logits of image and text tokens: a row per MoE layer, a column per expert."""
    plt = _pyplot()
    import numpy as np
    from matplotlib.mlab import GaussianKDE

    rows, E = len(statistics.layers), statistics.load_LME.shape[-1]
    figure, axes = plt.subplots(
        rows, E, figsize=(2.4 * E + 0.6, 1.7 * rows + 1.2), squeeze=False, sharex="row", layout="constrained"
    )
    for row, (layer, by_modality) in enumerate(zip(statistics.layers, statistics.logits, strict=True)):
        # By modality, so that the tokens of neither are cut off because there are more of the other.
        limits = [np.percentile(by_modality[name].numpy(), _SHOWN) for name in MODALITIES if len(by_modality[name])]
        low, high = min(pair[0] for pair in limits), max(pair[1] for pair in limits)
        grid = np.linspace(low, high, 200)
        for e in range(E):
            axis = axes[row][e]
            for name in MODALITIES:
                v = by_modality[name][:, e].numpy()
                v = v[(low <= v) & (v <= high)]  # or they would widen the kernel of those that are shown
                if len(v) > 1 and v.std() > 1e-6:
                    density = GaussianKDE(v)(grid)
                    axis.plot(grid, density, color=_COLOURS[name], label=name)
                    axis.fill_between(grid, density, color=_COLOURS[name], alpha=0.3)
            axis.set(ylim=(0, None), yticks=[])
            if row == 0:
                axis.set_title(f"expert {e + 1}", fontsize=10, color=_expert_colour(e + 1, E), fontweight="bold")
            if e == 0:
                axis.set_ylabel(f"layer {layer}")
        if high > low:
            axes[row][0].set_xlim(low, high)
    handles = {label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False, title="tokens")
    figure.suptitle("Router logits of each expert by kind of token")
    figure.supxlabel(
        f"router logit (of each kind, the {_SHOWN[0]}st to the {_SHOWN[1]}th percentile; the rest is not shown)", fontsize=10
    )
    figure.supylabel("density of tokens", fontsize=10)
    _save(figure, path)


def plot_distances(metrics: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Relative distance of each evolved expert from expert 1 over the steps of Stage II."""
    plt = _pyplot()
    lines = [entry for entry in metrics if any(key.startswith("distance/") for key in entry)]
    if not lines:
        raise ValueError("These metrics hold no distances: they are not of a run with Stage II.")
    numbers = [int(key.removeprefix("distance/expert")) for key in lines[0] if key.startswith("distance/")]
    figure, axis = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
    steps = [entry["step"] for entry in lines]
    for number in numbers:
        distances = [entry[f"distance/expert{number}"] for entry in lines]
        axis.plot(steps, distances, label=f"expert {number}", color=_expert_colour(number, max(numbers)))
    axis.axhline(1, color="grey", linestyle="--", linewidth=1, label="as far as expert 1\nitself moved")
    axis.set(
        title="How far the evolved experts are from expert 1",
        xlabel="step of Stage II",
        ylabel="distance to expert 1 /\ndistance expert 1 has moved",
        ylim=(0, None),
    )
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", frameon=False)
    _save(figure, path)


def _save(figure, path: str | Path) -> None:
    plt = _pyplot()
    figure.savefig(path, dpi=130)
    plt.close(figure)
