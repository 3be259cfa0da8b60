"""The study of the paper's tables in a few steps: ``TINY`` as its scale, and cells of Table 2."""

from collections.abc import Sequence
from pathlib import Path

from evomoe import mini
from evomoe.paper.study.scale import MiniScale
from evomoe.paper.study.study import Cell, cells
from evomoe.paper.tables import TABLES

TINY = MiniScale(evolution_steps=3, routing_steps=2, batch_size=2)
SIZES = mini.TestSizes(2, 2, 4, 2, 2, 1, 3)


def some(names: Sequence[str], base: Path, world: Path, seeds: Sequence[int] = (0,)) -> list[Cell]:
    return cells(TABLES["2"].chosen(names), seeds, TINY, {"": base}, {0: world}, "test")
