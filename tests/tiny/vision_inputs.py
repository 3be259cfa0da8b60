"""Vision tensors as each family's processor makes them, for so many pictures or videos in each row of a batch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Inputs = dict[str, Tensor]


def plain_pixels(images: Sequence[int], generator: torch.Generator) -> Inputs:
    """Pictures of all rows, one after the other."""
    return {"pixel_values": torch.randn(sum(images), 3, 16, 16, generator=generator)}


def pixels_by_row(images: Sequence[int], generator: torch.Generator) -> Inputs:
    """Pictures by row, filled up with zeros."""
    pixels = torch.zeros(len(images), max(images), 3, 16, 16)
    for row, count in enumerate(images):
        pixels[row, :count] = torch.randn(count, 3, 16, 16, generator=generator)
    return {"pixel_values": pixels}


def tiled_pixels(images: Sequence[int], generator: torch.Generator) -> Inputs:
    pixels = torch.randn(sum(images), 3, 3, 16, 16, generator=generator)
    return {"pixel_values": pixels, "image_sizes": torch.tensor([[16, 32]] * sum(images))}


def two_frames(videos: Sequence[int], generator: torch.Generator) -> Inputs:
    return {"pixel_values_videos": torch.randn(sum(videos), 2, 3, 16, 16, generator=generator)}


# Qwen's towers take pictures as flat patches, here a grid of 4 x 4, which merge to 2 x 2 tokens.
def patches_of(name: str) -> Callable[[Sequence[int], torch.Generator], Inputs]:
    pixels, grid = {"image": ("pixel_values", "image_grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}[name]

    def make(counts: Sequence[int], generator: torch.Generator) -> Inputs:
        total = sum(counts)
        return {pixels: torch.randn(total * 16, 3 * 2 * 4 * 4, generator=generator), grid: torch.tensor([[1, 4, 4]] * total)}

    return make


def sized_pixels(images: Sequence[int], generator: torch.Generator) -> Inputs:
    return plain_pixels(images, generator) | {"image_sizes": torch.tensor([[16, 16]] * sum(images))}


def tiles_by_row(images: Sequence[int], generator: torch.Generator) -> Inputs:
    rows, most = len(images), max(images)
    pixels = torch.zeros(rows, most, 4, 3, 16, 16)
    ratios, tiles = torch.zeros(rows, most, dtype=torch.long), torch.zeros(rows, most, 4, dtype=torch.long)
    for row, count in enumerate(images):
        pixels[row, :count, :1] = torch.randn(count, 1, 3, 16, 16, generator=generator)
        ratios[row, :count], tiles[row, :count, 0] = 1, 1
    return {"pixel_values": pixels, "aspect_ratio_ids": ratios, "aspect_ratio_mask": tiles}


def shaped_patches(images: Sequence[int], generator: torch.Generator) -> Inputs:
    total = sum(images)
    return {
        "pixel_values": torch.randn(total, 16, 3 * 4 * 4, generator=generator),
        "spatial_shapes": torch.tensor([[4, 4]] * total),
        "pixel_attention_mask": torch.ones(total, 16, dtype=torch.long),
    }
