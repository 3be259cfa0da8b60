"""Whether a picture's file is whole, found without decoding it, for the formats whose files can say so."""

import os
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

from PIL import Image

_TAIL = 1024
_STRIPS = {273: 279, 324: 325}
"""TIFF's tags of where strips and tiles lie, with those of how many bytes they have."""


def looks_whole(file: BinaryIO, picture: Image.Image) -> bool:
    """Whether an opened picture's file says of itself that it has all that it should. Only decoding is certain.

    Raises:
        Exception: Whatever Pillow raises for a file that is damaged.
    """
    check = _CHECKS.get(picture.format or "")
    return check is not None and check(file, picture)


def _png(file: BinaryIO, picture: Image.Image) -> bool:
    picture.verify()  # the checksum of every chunk, up to the last one
    return True


def _jpeg(file: BinaryIO, picture: Image.Image) -> bool:
    return b"\xff\xd9" in _tail(file)


def _gif(file: BinaryIO, picture: Image.Image) -> bool:
    return _tail(file).rstrip(b"\0").endswith(b"\0;") or _tail(file).endswith(b"\0;")


def _webp(file: BinaryIO, picture: Image.Image) -> bool:
    (length,) = struct.unpack("<I", _head(file, 8)[4:])
    return length + 8 <= _length(file)


def _tiff(file: BinaryIO, picture: Image.Image) -> bool:
    tags: Any = getattr(picture, "tag_v2", {})
    places = [
        (start, size)
        for starts, sizes in _STRIPS.items()
        if starts in tags and sizes in tags
        for start, size in zip(_several(tags[starts]), _several(tags[sizes]), strict=True)
    ]
    length = _length(file)
    return bool(places) and all(size and start + size <= length for start, size in places)


def _several(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _head(file: BinaryIO, size: int) -> bytes:
    file.seek(0)
    return file.read(size)


def _tail(file: BinaryIO) -> bytes:
    file.seek(max(0, _length(file) - _TAIL))
    return file.read()


def _length(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


_CHECKS: dict[str, Callable[[BinaryIO, Image.Image], bool]] = {
    "PNG": _png, "JPEG": _jpeg, "MPO": _jpeg, "GIF": _gif, "WEBP": _webp, "TIFF": _tiff,
}  # fmt: skip
