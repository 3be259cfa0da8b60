"""Where in its picture an image token lies.

T tokens of one record, V of them image tokens.
"""

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from evomoe.analysis.tile_grids import Grid, Size, tile_grids


class NoPlacesError(ValueError):
    """The image tokens of this model have no place in the picture that this library knows."""


@dataclass(frozen=True)
class Place:
    """The part of a picture that an image token stands for, as fractions of the picture that the processor was given.

    Attributes:
        picture: its number in the record, from 0.
        left, top, right, bottom: from 0 to 1.
        of_whole: it saw the picture whole and small, beside tiles of the same picture.
    """

    picture: int
    left: float
    top: float
    right: float
    bottom: float
    of_whole: bool = False


def token_grids(image_tokens: int, pictures: int, inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Height and width of each picture in image tokens, of models that see every picture whole.

    Args:
        image_tokens: V, of all the pictures of a record.
        pictures: how many these are.
        inputs: the model's, for this record alone.

    Raises:
        NoPlacesError: pictures are cut into tiles, or the tokens do not fill such grids.
    """
    if not image_tokens:
        return []
    if not pictures:
        raise NoPlacesError(f"there are {image_tokens} image tokens, but no picture.")
    pixels = inputs.get("pixel_values")
    if "image_grid_thw" in inputs:
        patches = [(int(height), int(width)) for _, height, width in inputs["image_grid_thw"].tolist()]
    elif isinstance(pixels, Tensor) and (pixels.ndim != 4 or len(pixels) != pictures):
        raise NoPlacesError(
            "the processor cuts pictures into tiles, and what a token stands for is not known here; docs/chat.md names the "
            "families whose tokens have places."
        )
    else:
        sizes = inputs["image_sizes"].tolist() if "image_sizes" in inputs else [(1, 1)] * pictures
        patches = [(int(height), int(width)) for height, width in sizes]
    if len(patches) != pictures:
        raise NoPlacesError(f"there are {pictures} pictures, but the processor tells the sizes of {len(patches)}.")
    # Several patches may have become one token, as many in height as in width, the same in every picture.
    per_token = math.sqrt(sum(height * width for height, width in patches) / image_tokens)
    grids = [(round(height / per_token), round(width / per_token)) for height, width in patches]
    filled = sum(height * width for height, width in grids)
    in_shape = all(H * width == W * height for (H, W), (height, width) in zip(grids, patches, strict=True))
    if filled != image_tokens or not in_shape:
        shape = "squares" if set(patches) == {(1, 1)} else "grids like " + ", ".join(f"{h} x {w}" for h, w in patches)
        raise NoPlacesError(f"these are {image_tokens} image tokens, which fill no {shape}.")
    return grids


def token_places(
    ids_T: Tensor,
    image_token_ids: Sequence[int],
    pictures: int,
    inputs: Mapping[str, Any],
    decode: Callable[[list[int]], str] = lambda ids: "",
    processor: Any = None,
    sizes: Sequence[Size] = (),
) -> list[Place | None]:
    """The place of each token of a record; None of text, and of image tokens that end a line.

    Args:
        ids_T: token ids.
        image_token_ids: ids of image tokens.
        pictures: how many pictures the record has.
        inputs: the model's, for this record alone.
        decode: token ids -> text, special tokens too: some processors name each tile in words before it.
        processor: the model's; what it cuts into tiles has places for those of ``LAYOUTS``.
        sizes: of the pictures as the processor was given them.

    Raises:
        NoPlacesError: as ``token_grids``.
    """
    ids = ids_T.tolist()
    is_image_T = torch.isin(ids_T, torch.tensor(list(image_token_ids), device=ids_T.device)).tolist()
    tiles = _named_tiles(ids, is_image_T, decode, inputs)
    known = tile_grids(processor, sizes, inputs, sum(is_image_T)) if len(sizes) == pictures > 0 else None
    cells: Sequence[Place | None]
    if tiles is not None:
        cells = _cells_of_tiles(tiles, pictures)
    elif known is not None:
        cells = [cell for grid in known for cell in _cells_of_grid(grid)]
        if len(cells) != sum(is_image_T):
            raise NoPlacesError(f"these are {sum(is_image_T)} image tokens, where the processor's tiles would give {len(cells)}.")
    else:
        grids = token_grids(sum(is_image_T), pictures, inputs)
        cells = [place for number, (H, W) in enumerate(grids) for place in _cells(Place(number, 0, 0, 1, 1), H, W)]
    of_image = iter(cells)
    return [next(of_image) if is_image else None for is_image in is_image_T]


@dataclass(frozen=True)
class _Tile:
    """A run of image tokens that a name stands before.

    Attributes:
        row, column: from 1; 0 for the whole picture, which comes last.
        shape: how many tokens there are in height and width.
    """

    row: int
    column: int
    shape: tuple[int, int]


_TILE = re.compile(r"<\|?(?:img_)?row_(\d+)_col_(\d+)\|?>")
_WHOLE = ("<global-img>", "<|img_thumbnail|>", "<|image_start|>")
"""The names that Idefics 3, SmolVLM and LFM2-VL give a tile and the whole picture."""


def _named_tiles(
    ids: Sequence[int], is_image_T: Sequence[bool], decode: Callable[[list[int]], str], inputs: Mapping[str, Any]
) -> list[_Tile] | None:
    """The runs of image tokens; None if they have no names."""
    tiles, start = [], 0
    for is_image, run in itertools.groupby(is_image_T):
        length = len([*run])
        if is_image:
            name, shape = decode([ids[start - 1]]).strip() if start else "", _shape_of_tile(length, len(tiles), inputs)
            if name in _WHOLE:
                tiles.append(_Tile(0, 0, shape))
            elif found := _TILE.fullmatch(name):
                tiles.append(_Tile(int(found[1]), int(found[2]), shape))
            else:
                return None
        start += length
    return tiles or None


def _shape_of_tile(tokens: int, number: int, inputs: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of a run of tokens: a square, unless the processor says what shape its patches have."""
    if "spatial_shapes" in inputs:
        height, width = inputs["spatial_shapes"][number].tolist()
        for per_token in range(1, max(height, width) + 1):
            shape = math.ceil(height / per_token), math.ceil(width / per_token)
            if shape[0] * shape[1] == tokens:
                return shape
    side = math.isqrt(tokens)
    return side, side if side * side == tokens else 0


def _cells_of_tiles(tiles: Sequence[_Tile], pictures: int) -> list[Place]:
    cells, number = [], 0
    of_picture: list[_Tile] = []
    for tile in tiles:
        of_picture.append(tile)
        if tile.row:
            continue
        rows, columns = (max(getattr(one, side) for one in of_picture) or 1 for side in ("row", "column"))
        for one in of_picture:
            if not one.shape[1]:
                raise NoPlacesError("a tile's image tokens fill no square.")
            if one.row:
                left, top = (one.column - 1) / columns, (one.row - 1) / rows
                area = Place(number, left, top, left + 1 / columns, top + 1 / rows)
            else:
                area = Place(number, 0, 0, 1, 1, of_whole=len(of_picture) > 1)
            cells += _cells(area, *one.shape)
        of_picture, number = [], number + 1
    if of_picture or number != pictures:
        raise NoPlacesError(f"there are {pictures} pictures, but the names of their tiles tell of {number}.")
    return cells


def _cells_of_grid(grid: Grid) -> list[Place | None]:
    """The places of a grid's tokens; None of those that end a line or the grid."""
    places = _cells(Place(grid.picture, *grid.area, of_whole=grid.of_whole), grid.rows, grid.columns)
    rows = [places[start : start + grid.columns] for start in range(0, len(places), grid.columns)]
    ends: list[Place | None] = [None] if grid.line_ends else []
    return [place for row in rows for place in (*row, *ends)] + ([None] if grid.end else [])


def _cells(area: Place, H: int, W: int) -> list[Place]:
    """An area in H x W equal parts, row by row."""
    width, height = (area.right - area.left) / W, (area.bottom - area.top) / H
    return [
        replace(
            area,
            left=area.left + column * width,
            top=area.top + row * height,
            right=area.left + (column + 1) * width,
            bottom=area.top + (row + 1) * height,
        )
        for row in range(H)
        for column in range(W)
    ]
