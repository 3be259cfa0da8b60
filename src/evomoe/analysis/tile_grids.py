"""How the processors that cut pictures into tiles lay out image tokens: which part of a picture each grid of tokens stands for.

A row of ``LAYOUTS`` is all that a family of this kind needs. What a processor calculates itself, it is asked for.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers.image_processing_utils import select_best_resolution

Size = tuple[int, int]
"""Height and width of a picture as the processor was given it, in pixels."""
WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Grid:
    """Image tokens, row by row, and the part of a picture that they stand for.

    Attributes:
        picture: its number in the record, from 0.
        area: left, top, right and bottom, as fractions of the picture.
        rows, columns: how many tokens there are.
        line_ends: a token that stands for no part of the picture ends each row.
        end: so does one after the last row.
        of_whole: it shows the picture whole and small, beside tiles of the same picture.
    """

    picture: int
    area: tuple[float, float, float, float]
    rows: int
    columns: int
    line_ends: bool = False
    end: bool = False
    of_whole: bool = False


def tile_grids(processor: Any, sizes: Sequence[Size], inputs: Mapping[str, Any], image_tokens: int) -> list[Grid] | None:
    """The grids of a record's pictures, in the order of their tokens; None of a processor that no row is about.

    Args:
        processor: the model's.
        sizes: of the pictures.
        inputs: what the processor made of this record.
        image_tokens: how many there are in it.
    """
    layout = LAYOUTS.get(type(processor).__name__)
    return layout(processor, sizes, inputs, image_tokens) if layout else None


def _anyres(processor: Any, sizes: Sequence[Size], inputs: Mapping[str, Any], image_tokens: int) -> list[Grid]:
    """LLaVA-NeXT and OneVision: the picture whole, then a grid over the tiles less their padding, with an end to each line."""
    height, width = inputs["pixel_values"].shape[-2:]
    several = _several_of_onevision(processor, len(sizes))
    grids = []
    for picture, (H, W) in enumerate(sizes):
        rows, columns = _patches(processor, height, width)
        if several:
            grids.append(Grid(picture, WHOLE, rows, columns, end=True))
            continue
        best = select_best_resolution((H, W), processor.image_processor.image_grid_pinpoints)
        scales = best[0] // height, best[1] // width
        cells, lines = processor._get_unpadded_features(H, W, rows, columns, *scales)
        grids.append(Grid(picture, WHOLE, rows, columns, of_whole=True))
        grids.append(Grid(picture, WHOLE, lines, cells // lines, line_ends=True))
    return grids


def _patches(processor: Any, height: int, width: int) -> Size:
    """Rows and columns of a tile."""
    if count := getattr(processor, "num_image_tokens", None):
        return math.isqrt(count), math.isqrt(count)
    return height // processor.patch_size, width // processor.patch_size


def _several_of_onevision(processor: Any, pictures: int) -> bool:
    """OneVision does not cut a question's pictures into tiles if there are several."""
    return pictures > 1 and hasattr(processor, "num_image_tokens")


def _canvas(processor: Any, sizes: Sequence[Size], inputs: Mapping[str, Any], image_tokens: int) -> list[Grid]:
    """InternVL, Aya Vision and Cohere 2 Vision: tiles row by row, then the picture whole; it alone if there is one tile."""
    images = processor.image_processor
    canvas = sys.modules[type(images).__module__].get_optimal_tiled_canvas
    tile = (images.size["height"], images.size["width"])
    shapes = [canvas(size, tile, images.min_patches, images.max_patches) for size in sizes]
    return _of_shapes(shapes, inputs, image_tokens, whole_first=False)


def _ovis(processor: Any, sizes: Sequence[Size], inputs: Mapping[str, Any], image_tokens: int) -> list[Grid]:
    """Ovis 2: the picture whole, then tiles row by row; it alone if there is one tile."""
    images = processor.image_processor
    covering = sys.modules[type(images).__module__].get_min_tile_covering_grid
    # transformers takes what this returns for columns and rows, in this order.
    shapes = [covering(size, images.size["height"], images.max_patches) for size in sizes]
    return _of_shapes(shapes, inputs, image_tokens, whole_first=True)


def _of_shapes(shapes: Sequence[Size], inputs: Mapping[str, Any], image_tokens: int, whole_first: bool) -> list[Grid]:
    """Square tiles of each picture, of which ``shapes`` has columns and rows; one whole each if pictures were not cut."""
    if len(inputs["pixel_values"]) == len(shapes):
        shapes = [(1, 1)] * len(shapes)
    side = math.isqrt(image_tokens // sum(columns * rows + (columns * rows > 1) for columns, rows in shapes))
    return [grid for picture, (columns, rows) in enumerate(shapes) for grid in _tiles(picture, rows, columns, side, whole_first)]


def _tiles(picture: int, rows: int, columns: int, side: int, whole_first: bool) -> list[Grid]:
    """Square tiles row by row, and the whole before or after them; the whole alone if there is one tile."""
    whole = Grid(picture, WHOLE, side, side, of_whole=rows * columns > 1)
    if rows * columns == 1:
        return [whole]
    tiles = [
        Grid(picture, (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows), side, side)
        for row in range(rows)
        for column in range(columns)
    ]
    return [whole, *tiles] if whole_first else [*tiles, whole]


LAYOUTS: dict[str, Callable[[Any, Sequence[Size], Mapping[str, Any], int], list[Grid]]] = {
    "LlavaNextProcessor": _anyres,
    "LlavaNextVideoProcessor": _anyres,
    "LlavaOnevisionProcessor": _anyres,
    "InternVLProcessor": _canvas,
    "AyaVisionProcessor": _canvas,
    "Cohere2VisionProcessor": _canvas,
    "Ovis2Processor": _ovis,
}
"""By the processor's class."""
