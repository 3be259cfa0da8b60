"""The pictures of a run: expert load, router logits by modality, distances over the steps. Needs matplotlib.

Implements: Figure 1 (drawing of b), Figure 5 (drawing).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evomoe.analysis.routing import MODALITIES, RoutingStatistics

_COLOURS = {"text": "#d95f02", "image": "#1b9e77"}


def _pyplot():
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: pip install 'evomoe[plots]'.") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def plot_load(statistics: RoutingStatistics, path: str | Path) -> None:
    """Stacked bars: how each MoE layer divides its image and its text tokens among the experts."""
    plt = _pyplot()
    E = statistics.load_LME.shape[-1]
    shades = plt.get_cmap("viridis")([i / max(E - 1, 1) for i in range(E)])
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    positions = range(len(statistics.layers))
    for m, (axis, modality) in enumerate(zip(axes, MODALITIES, strict=True)):
        below = [0.0] * len(statistics.layers)
        for e in range(E):
            share = (100 * statistics.load_LME[:, m, e]).tolist()
            axis.bar(positions, share, bottom=below, color=shades[e], width=0.7, label=f"expert {e + 1}")
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
    figure, axes = plt.subplots(rows, E, figsize=(2.4 * E, 1.7 * rows), squeeze=False, layout="constrained")
    for row, (layer, by_modality) in enumerate(zip(statistics.layers, statistics.logits, strict=True)):
        for e in range(E):
            axis = axes[row][e]
            values = {name: by_modality[name][:, e].numpy() for name in MODALITIES}
            drawable = {name: v for name, v in values.items() if len(v) > 1 and v.std() > 1e-6}
            for name, v in drawable.items():
                grid = np.linspace(v.min() - 2 * v.std(), v.max() + 2 * v.std(), 200)
                density = GaussianKDE(v)(grid)
                axis.plot(grid, density, color=_COLOURS[name], label=name)
                axis.fill_between(grid, density, color=_COLOURS[name], alpha=0.3)
            axis.set_yticks([])
            if row == 0:
                axis.set_title(f"expert {e + 1}", fontsize=10)
            if e == 0:
                axis.set_ylabel(f"layer {layer}")
    handles = {label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False)
    figure.supxlabel("router logit")
    _save(figure, path)


def plot_distances(metrics: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Relative distance of each evolved expert from expert 1 over the steps of Stage II."""
    plt = _pyplot()
    lines = [entry for entry in metrics if any(key.startswith("distance/") for key in entry)]
    if not lines:
        raise ValueError("These metrics hold no distances: they are not of a run with Stage II.")
    figure, axis = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
    for key in [key for key in lines[0] if key.startswith("distance/")]:
        number = key.removeprefix("distance/expert")
        axis.plot([entry["step"] for entry in lines], [entry[key] for entry in lines], label=f"expert {number}")
    axis.set(xlabel="step of Stage II", ylabel="distance to expert 1 /\ndistance expert 1 has moved", ylim=(0, None))
    axis.legend(frameon=False)
    _save(figure, path)


def _save(figure, path: str | Path) -> None:
    plt = _pyplot()
    figure.savefig(path, dpi=130)
    plt.close(figure)
