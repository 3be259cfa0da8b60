"""The densities of the router's logits for text and for image tokens, and how far they overlap.

Implements: Figure 1 (b).
"""

from collections.abc import Mapping

from evomoe.analysis.plots import plot_logits
from evomoe.paper.figures.drawing import draw_routing
from evomoe.paper.figures.figure_options import FigureOptions

PUBLISHED = "a linear router's logits of image and text tokens overlap widely; no number is given"


def draw(checkpoints: Mapping[str, str], options: FigureOptions) -> str:
    """Draws the figure for checkpoints by name, and returns what was written; see ``draw_routing``."""
    return draw_routing("1b", checkpoints, options, plot_logits, PUBLISHED)
