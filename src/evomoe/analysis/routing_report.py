"""The part of a report that tells what routers and experts did: tables, what they mean, pictures."""

import math
from collections.abc import Callable
from pathlib import Path

from evomoe.analysis.meanings import MEANINGS
from evomoe.analysis.plots import plot_load, plot_logits
from evomoe.analysis.recording import MODALITIES
from evomoe.analysis.routing import RoutingStatistics
from evomoe.support.text import markdown_table

_GROUPS = {
    "uniformity": "### Uniformity: do the experts differ?",
    "rigidity": "### Rigidity: does the router tell image from text?",
    "balance": "### Balance: do all experts work?",
}


def routing_sections(folder: Path, statistics: RoutingStatistics) -> list[str]:
    """Paragraphs in Markdown, and the pictures that they show, written into ``folder``."""
    parts = []
    for group, title in _GROUPS.items():
        parts += [title, _table(statistics, group), _explained(statistics, group)]
    load = statistics.expert_load()
    rows = [[f"{name} tokens", *(f"{100 * share:.1f} %" for share in load[name])] for name in MODALITIES]
    return [
        *parts,
        markdown_table(["load, mean over layers", *statistics.names], rows),
        picture(folder, "expert_load.png", lambda path: plot_load({"": statistics}, path)),
        picture(folder, "router_logits.png", lambda path: plot_logits({"": statistics}, path)),
    ]


def picture(folder: Path, name: str, draw: Callable[[Path], None]) -> str:
    """Draws a picture, and links it; without matplotlib it says what is missing."""
    try:
        draw(folder / name)
    except ImportError as error:
        return f"({name}: {error})"
    return f"![{name.removesuffix('.png').replace('_', ' ')}]({name})"


def _of_group(statistics: RoutingStatistics, group: str) -> dict[str, list[float]]:
    metrics = statistics.metrics()
    return {name: metrics[name] for name, meaning in MEANINGS.items() if meaning.group == group and name in metrics}


def _table(statistics: RoutingStatistics, group: str) -> str:
    columns, means = _of_group(statistics, group), statistics.means()
    rows = [
        [f"layer {layer}", *(_number(values[i], MEANINGS[name].digits) for name, values in columns.items())]
        for i, layer in enumerate(statistics.layers)
    ]
    rows.append(["mean", *(_number(means[name], max(MEANINGS[name].digits, 1)) for name in columns)])
    return markdown_table(["", *(MEANINGS[name].heading for name in columns)], rows)


def _explained(statistics: RoutingStatistics, group: str) -> str:
    return "\n".join(f"- {MEANINGS[name].heading}: {MEANINGS[name].text}." for name in _of_group(statistics, group))


def _number(value: float, digits: int) -> str:
    return "n/a" if math.isnan(value) else f"{value:.{digits}f}"
