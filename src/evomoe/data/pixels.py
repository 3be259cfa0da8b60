"""Pixels of any kind as RGB of eight bits, so that what is seen stays what it was."""

import numpy as np
from PIL import Image

_WITH_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")
FLOAT = "F"
_WIDE = ("I", FLOAT)
"""Modes of more than eight bits; those of sixteen begin with "I;16"."""


def to_rgb(picture: Image.Image) -> Image.Image:
    """The picture in RGB.

    What is transparent shows white, as the processors of vision-language models have it. Grey values of more than eight bits are
    scaled to the range that their kind has: 65,535 for sixteen bits; for floats 1, 255, 65,535 or the largest, the first that
    holds them all.

    Raises:
        ValueError: A pixel is infinite or not a number.
    """
    if picture.mode.startswith("I;16") or picture.mode in _WIDE:
        return _scaled_grey(picture).convert("RGB")
    if picture.mode in _WITH_ALPHA or "transparency" in picture.info:
        coloured = picture.convert("RGBA") if picture.mode != "La" else picture.convert("LA").convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, coloured).convert("RGB")
    return picture.convert("RGB")


def _scaled_grey(picture: Image.Image) -> Image.Image:
    """Wide grey values as eight bits."""
    values = np.asarray(picture, dtype=np.float64)
    if wrong := int(np.count_nonzero(~np.isfinite(values))):
        raise ValueError(
            f"{wrong} of its {values.size} pixels are infinite or not a number; give them values, and save it as PNG"
        )
    low, high = min(0.0, values.min(initial=0.0)), values.max(initial=0.0)
    sixteen_bits = picture.mode.startswith("I;16") or picture.mode == "I" and picture.format == "PNG"
    tops = (65535.0,) if sixteen_bits else (1.0, 255.0, 65535.0) if picture.mode == FLOAT else (255.0, 65535.0)
    top = next((top for top in tops if high <= top), high)
    return Image.fromarray(np.rint((values - low) / (top - low) * 255).astype(np.uint8))
