"""Pictures of every mode that Pillow has: what is seen stays what it was."""

import numpy as np
import pytest
from PIL import Image

from evomoe.data.images import open_rgb
from evomoe.data.pixels import to_rgb

MODES = (
    "1",
    "CMYK",
    "F",
    "HSV",
    "I",
    "I;16",
    "I;16B",
    "I;16L",
    "L",
    "LA",
    "LAB",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBX",
    "RGBa",
    "YCbCr",
)
GREY = np.tile(np.arange(0, 256, 16, dtype=np.uint8), (16, 1))


def in_mode(mode: str) -> Image.Image:
    """A ramp from black to white."""
    if mode.startswith("I;16"):
        order = ">u2" if mode == "I;16B" else "<u2"
        return Image.frombytes(mode, (16, 16), (GREY.astype(np.uint16) * 257).astype(order).tobytes())
    if mode == "I":
        return Image.fromarray(GREY.astype(np.int32) * 257)
    if mode == "F":
        return Image.fromarray(GREY.astype(np.float32) / 255)
    ramp = Image.fromarray(GREY)
    if mode == "LAB":
        return Image.merge("LAB", (ramp, Image.new("L", ramp.size, 128), Image.new("L", ramp.size, 128)))
    if mode in ("La", "RGBa"):
        return ramp.convert(mode.replace("a", "A")).convert(mode)
    if mode == "PA":
        return ramp.convert("P").convert("PA")
    return ramp.convert("RGB").convert(mode) if mode in ("HSV", "CMYK", "YCbCr", "RGBX") else ramp.convert(mode)


def test_these_are_the_modes_that_there_are():
    assert {*MODES} == {*Image.MODES} - {"I;16N"}  # which is one of the other two


@pytest.mark.parametrize("mode", MODES)
def test_a_ramp_stays_a_ramp(mode):
    found = np.asarray(to_rgb(in_mode(mode))).astype(int)
    assert found.shape == (16, 16, 3)
    if mode == "1":  # black and white alone
        assert {*np.unique(found)} == {0, 255}
        return
    grey = found.mean(-1)
    allowed = 12 if mode in ("LAB", "P", "PA") else 3
    assert abs(grey - GREY).max() <= (40 if mode == "LAB" else allowed), mode
    assert (np.diff(grey[0]) >= -1).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La", "P", "L", "RGB"])
def test_what_is_transparent_is_white(mode, tmp_path):
    clear = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    clear.paste((200, 0, 0, 255), (0, 0, 4, 8))
    if mode == "P":
        picture = clear.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE, colors=2)
        picture.info["transparency"] = picture.getpixel((7, 7))
    elif mode in ("L", "RGB"):
        picture = clear.convert(mode)
        picture.info["transparency"] = picture.getpixel((7, 7))
    elif mode == "PA":
        picture = clear.convert("RGB").convert("P").convert("PA")
        picture.putalpha(clear.getchannel("A"))
    elif mode == "La":
        picture = clear.convert("LA").convert("La")
    else:
        picture = clear.convert(mode)
    found = to_rgb(picture)
    assert found.getpixel((7, 7)) == (255, 255, 255) and found.getpixel((0, 0)) != (255, 255, 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "I;16", "P", "1", "L"])
def test_a_file_on_disk_is_seen_so(mode, tmp_path):
    in_mode(mode).save(tmp_path / "ramp.png")
    grey = np.asarray(open_rgb(str(tmp_path / "ramp.png"))).astype(int).mean(-1)
    assert abs(grey - GREY).max() <= 12 if mode != "1" else {*np.unique(grey)} == {0.0, 255.0}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 128.0, 255.0], [0, 128, 255]),
        ([0.0, 32768.0, 65535.0], [0, 128, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, 0.0, 0.0], [0, 0, 0]),
    ],
)
def test_floats_have_the_first_range_that_holds_them(values, expected):
    picture = Image.fromarray(np.array([values], dtype=np.float32))
    assert [to_rgb(picture).getpixel((x, 0))[0] for x in range(3)] == expected
