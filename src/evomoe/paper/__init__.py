"""The paper's tables and figures, a file each; tables' rows are recipes with the published numbers beside them.

Needs neither torch nor transformers.
"""

FIGURES = {
    "1a": "evomoe.paper.figure_1a",
    "1b": "evomoe.paper.figure_1b",
    "5": "evomoe.paper.figure_5",
    "slots": "evomoe.paper.figure_slots",
}
"""The module of each figure; it has ``draw(checkpoints, options)``."""
