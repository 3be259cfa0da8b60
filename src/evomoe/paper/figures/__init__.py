"""The paper's figures, a file each.

Needs neither torch nor transformers.
"""

from typing import Literal, get_args

Figure = Literal["1a", "1b", "5", "slots"]
"""The paper's number, or the name of a figure of our own."""
FIGURES: dict[str, str] = {name: f"evomoe.paper.figures.figure_{name}" for name in get_args(Figure)}
"""The module of each figure. It has ``draw(checkpoints, options)``."""
