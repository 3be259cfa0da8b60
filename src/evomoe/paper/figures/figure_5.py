"""How each MoE layer divides its text and its image tokens among the experts.

Implements: Figure 5.
"""

from collections.abc import Mapping

from evomoe.analysis.plots import plot_load
from evomoe.paper.figures.drawing import draw_routing
from evomoe.paper.figures.figure_options import FigureOptions

PUBLISHED = (
    "on ScienceQA, MoE-tuning loads its experts almost alike whatever the modality, EvoMoE by modality; no number is given"
)


def draw(checkpoints: Mapping[str, str], options: FigureOptions) -> str:
    """Draws the figure for checkpoints by name, and returns what was written; see ``draw_routing``."""
    return draw_routing("5", checkpoints, options, plot_load, PUBLISHED)
