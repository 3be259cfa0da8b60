"""Where in its picture an image token lies.

T tokens of one record, V of them image tokens.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class NoPlacesError(ValueError):
    """The image tokens of this model have no place in the picture that this library knows."""


@dataclass(frozen=True)
class Place:
    """The part of a picture that an image token stands for, as fractions of the picture that the processor was given.

    Attributes:
        picture: its number in the record, from 0.
        left, top, right, bottom: from 0 to 1.
    """

    picture: int
    left: float
    top: float
    right: float
    bottom: float


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
            "the processor cuts pictures into tiles, and what a token stands for is not known; "
            "this is for models that see every picture whole, such as LLaVA-1.5, Gemma 3 and Qwen-VL."
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


def token_places(ids_T: Tensor, image_token_ids: Sequence[int], pictures: int, inputs: Mapping[str, Any]) -> list[Place | None]:
    """The place of each token of a record; None of text.

    Args:
        ids_T: token ids.
        image_token_ids: ids of image tokens.
        pictures: how many pictures the record has.
        inputs: the model's, for this record alone.

    Raises:
        NoPlacesError: as ``token_grids``.
    """
    is_image_T = torch.isin(ids_T, torch.tensor(list(image_token_ids), device=ids_T.device)).tolist()
    cells = [
        Place(number, column / W, row / H, (column + 1) / W, (row + 1) / H)
        for number, (H, W) in enumerate(token_grids(sum(is_image_T), pictures, inputs))
        for row in range(H)
        for column in range(W)
    ]
    of_image = iter(cells)
    return [next(of_image) if is_image else None for is_image in is_image_T]
