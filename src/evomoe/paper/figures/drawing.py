"""What the figures share: statistics of checkpoints on one probe, and a picture with its numbers in a folder."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from evomoe.analysis.analyze import check_takes_pictures, load_sparse, numbers, open_probe
from evomoe.analysis.plots import load_pyplot
from evomoe.analysis.routing import RoutingStatistics, routing_statistics
from evomoe.paper.figures.figure_options import FigureOptions
from evomoe.support.files import write_text


def draw_routing(
    figure: str,
    checkpoints: Mapping[str, str],
    options: FigureOptions,
    plot: Callable[..., None],
    published: str,
) -> str:
    """Draws a figure of what the routers of some checkpoints did on a probe.

    Args:
        figure: its name, for the files.
        checkpoints: by the names above their parts of the picture.
        plot: draws statistics by name.
        published: what the paper says of its own.

    Returns:
        What was written.

    Raises:
        ValueError: a checkpoint is dense or text-only, or the probe has no pictures.
        ImportError: matplotlib is not installed.
    """
    load_pyplot()  # before the models are loaded
    configs = {name: check_takes_pictures(checkpoint, options) for name, checkpoint in checkpoints.items()}
    named: dict[str, RoutingStatistics] = {}
    probe = ""
    for name, checkpoint in checkpoints.items():
        opened = open_probe(checkpoint, configs[name], options)
        model = load_sparse(checkpoint, options)
        named[name], probe = routing_statistics(model, opened.unlabelled(model)), opened.name
    known = {
        "probe": probe,
        "published": published,
        "models": {name: {"checkpoint": checkpoints[name]} | numbers(statistics) for name, statistics in named.items()},
    }
    return write_figure(options.output, figure, lambda *paths: plot(named, *paths), known)


def write_figure(output: str, figure: str, plot: Callable[..., None], known: dict[str, Any]) -> str:
    """Writes figure_NAME.png, .svg and .json into a folder, and says so."""
    stem = Path(output) / f"figure_{figure}"
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".svg", ".json")]
    write_text(paths[2], json.dumps(known, indent=1) + "\n")
    plot(*paths[:2])
    return ", ".join(map(str, paths))
