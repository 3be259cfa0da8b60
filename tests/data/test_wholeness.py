"""Damaged pictures are found before training: cheaply where the format says what a whole file has, by decoding where asked."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from evomoe.data.images import BadImageError, check_image, open_rgb
from evomoe.data.records import BadRecordError, load_records
from evomoe.support.errors import OptionError

CHEAP = {
    "PNG": {},
    "JPEG": {},
    "GIF": {},
    "WEBP": {},
    "TIFF": {},
    "TIFF lzw": {"compression": "tiff_lzw"},
    "WEBP lossless": {"lossless": True},
}
RLE = {"TGA rle": {"compression": "tga_rle"}}
OTHERS = ["BMP", "PPM", "TGA", "TGA rle", "PCX", "SGI", "JPEG2000", "DDS", "QOI", "ICO", "IM", "AVIF"]


def written(folder: Path, kind: str) -> Path:
    path = folder / f"{kind.replace(' ', '_')}.dat"
    mode = "P" if kind == "GIF" else "RGB"
    Image.effect_noise((60, 50), 90).convert(mode).save(path, kind.split()[0], **(CHEAP | RLE).get(kind, {}))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    return {kind: written(folder, kind).read_bytes() for kind in [*CHEAP, *OTHERS]}


@pytest.mark.parametrize("kind", CHEAP)
@pytest.mark.parametrize("part", [0.3, 0.5, 0.9, 0.99])
def test_a_part_of_a_file_is_found_without_decoding_all(whole, kind, part):
    content = whole[kind]
    check_image(content, 10**6)
    with pytest.raises(BadImageError, match="in the image column"):
        check_image(content[: int(len(content) * part)], 10**6)


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("part", [0.3, 0.5, 0.9, 0.99])
def test_a_part_of_a_file_that_cannot_say_is_found_by_decoding(whole, kind, part):
    content = whole[kind]
    check_image(content, 10**6)
    with pytest.raises(BadImageError, match="in the image column"):
        check_image(content[: int(len(content) * part)], 10**6)


@pytest.mark.parametrize("kind", CHEAP)
def test_a_whole_file_is_decoded_only_if_asked(whole, kind, monkeypatch):
    decoded = []
    load = Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda self: decoded.append(self) or load(self))
    check_image(whole[kind] + b"\0\0", 10**6)
    loads = len(decoded)
    check_image(whole[kind], 10**6, decode=True)
    assert loads == 0 < len(decoded)


@given(kind=st.sampled_from(sorted([*CHEAP, *OTHERS])), part=st.floats(0, 1, allow_subnormal=False))
def test_no_cut_passes_that_cannot_be_opened(whole, kind, part):
    content = whole[kind][: int(len(whole[kind]) * part)]

    def fails(look) -> bool:
        try:
            look()
        except BadImageError:
            return True
        return False

    assert fails(lambda: check_image(content, 10**6)) == fails(lambda: open_rgb(content))


@given(at=st.floats(0.1, 0.8, allow_subnormal=False))
def test_a_hole_in_a_png_is_found(whole, at):
    content = bytearray(whole["PNG"])
    start = int(len(content) * at)
    content[start : start + 100] = bytes(100)
    with pytest.raises(BadImageError):
        check_image(bytes(content), 10**6)


@pytest.mark.parametrize("kind", OTHERS)
def test_of_other_formats_decoding_finds_it(tmp_path, whole, kind):
    (tmp_path / "cut.dat").write_bytes(whole[kind][: len(whole[kind]) // 2])
    (tmp_path / "good.dat").write_bytes(whole[kind])
    talk = {"messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "red"}]}
    rows = [talk | {"image": "good.dat"}, talk | {"image": "cut.dat"}]
    with pytest.raises(BadRecordError, match="record 1: image .*cut.dat "):
        load_records(rows, tmp_path)
    assert len(load_records(rows, tmp_path, on_bad_record="skip")) == 1


def test_a_tiff_that_says_nothing_of_its_length_is_decoded(whole):
    content = whole["TIFF"]
    picture = Image.open(io.BytesIO(content))
    (count,) = picture.tag_v2[279]
    silent = content.replace(struct.pack("<HHII", 279, 4, 1, count), struct.pack("<HHII", 279, 4, 1, 0))
    assert silent != content
    with pytest.raises(BadImageError):
        check_image(silent[: len(silent) // 2], 10**6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_pixels_that_are_no_numbers_are_refused_before_training(tmp_path, value):
    pixels = np.full((6, 5), 0.5, np.float32)
    Image.fromarray(pixels).save(tmp_path / "good.tiff")
    pixels[2, 3] = value
    Image.fromarray(pixels).save(tmp_path / "bad.tiff")
    talk = {"messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "red"}]}
    assert len(load_records([talk | {"image": "good.tiff"}], tmp_path)) == 1
    told = "1 of its 30 pixels are infinite or not a number; give them values"
    with pytest.raises(BadRecordError, match=f"record 0: image .*bad.tiff cannot be decoded: {told}"):
        load_records([talk | {"image": "bad.tiff"}], tmp_path)
    with pytest.raises(BadRecordError, match=told):
        load_records([talk | {"image": Image.fromarray(pixels)}], tmp_path)


def test_there_are_two_ways_to_check(tmp_path):
    with pytest.raises(OptionError, match="check_pictures: there is no 'all'; choose 'header' or 'decode'"):
        load_records([{}], tmp_path, check_pictures="all")


@pytest.mark.parametrize("text", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n"])
def test_a_program_is_no_picture(tmp_path, text):
    (tmp_path / "a.png").write_bytes(text)
    for look in (
        lambda: check_image(str(tmp_path / "a.png"), 10**6),
        lambda: open_rgb(str(tmp_path / "a.png")),
        lambda: open_rgb(text),
    ):
        with pytest.raises(BadImageError, match="is EPS, a program that another one would have to run; save it as PNG"):
            look()
