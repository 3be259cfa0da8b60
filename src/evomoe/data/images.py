"""Pictures: where they may lie, whether they are sound, and how they are opened."""

import io
import os
import stat
import warnings
from contextlib import suppress
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from evomoe.data.pixels import FLOAT, to_rgb
from evomoe.data.wholeness import looks_whole
from evomoe.recipe.options import ImageAspect, check_image_aspect
from evomoe.support.errors import foreign, panics_as_errors
from evomoe.support.processor import Processor
from evomoe.support.text import shortened

_PROGRAMS = ("EPS",)
"""Formats that Pillow hands to another program, here Ghostscript, which nothing bounds."""
_SHOWN = 300
"""Characters of a path in a message: what is longer is no path, but a picture in base64."""


class BadImageError(ValueError):
    """A picture that cannot be used; the message says which and why."""


class MissingImageError(BadImageError):
    """A picture that does not exist."""


class ImageFolder:
    """The folder that picture paths are relative to and may not leave.

    Args:
        folder: Where relative paths start.
        allow_absolute_outside: Whether an absolute path may point outside of `folder`.
    """

    def __init__(self, folder: str | os.PathLike[str], allow_absolute_outside: bool) -> None:
        self.folder = os.path.abspath(folder)
        self.allow_absolute_outside = allow_absolute_outside

    def resolve(self, path: str) -> str:
        """Returns the absolute path. Links that lie in the folder are its owner's, and may lead out of it; the path may not.

        Raises:
            BadImageError: The path leaves the folder.
        """
        try:
            os.fsencode(path)
        except UnicodeEncodeError:
            raise BadImageError(f"the image path {shortened(path, _SHOWN)!r} holds half a character") from None
        if "\0" in path:
            raise BadImageError(f"the image path {shortened(path, _SHOWN)!r} holds a null character")
        resolved = os.path.normpath(os.path.join(self.folder, path))
        free = os.path.isabs(path) and self.allow_absolute_outside
        if not free and not _lies_in(self.folder, resolved) and not _lies_in(os.path.realpath(self.folder), resolved):
            raise BadImageError(f"the image path {shortened(path, _SHOWN)!r} leaves the image folder {self.folder}")
        return resolved

    def within(self, path: str) -> str:
        """The path that it has in the folder, from which joining leads back to the absolute one; the absolute one of a file elsewhere.

        Raises:
            BadImageError: The path leaves the folder.
        """
        resolved = self.resolve(path)
        inside = _lies_in(self.folder, resolved) and resolved != self.folder
        return resolved[len(self.folder.rstrip(os.sep)) + 1 :] if inside else resolved


def _lies_in(folder: str, path: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def read_size(source: str | bytes) -> tuple[int, int]:
    """Reads (width, height) in pixels from a picture's header; `source` is a path or an encoded picture.

    Raises:
        BadImageError: It is missing or not a picture.
    """
    with open_file(source) as file:
        return _open_header(file, _name(source)).size


def check_image(source: str | bytes, max_pixels: int, decode: bool = False) -> tuple[int, int]:
    """Checks a picture by its header and by what its format says of a whole file.

    It is decoded if that looks wrong, if its format says nothing, and if its pixels may be no numbers.

    Returns:
        Its width and height, in pixels.

    Args:
        source: A path or an encoded picture.
        max_pixels: The largest picture allowed.
        decode: Decode it whatever it looks like: some damage shows only then.

    Raises:
        BadImageError: It is missing, not a picture, has more than `max_pixels` pixels, or is damaged.
    """
    name = _name(source)
    with open_file(source) as file:
        picture = _open_header(file, name)
        width, height = picture.size
        if width * height > max_pixels:
            raise BadImageError(f"image {name} has {width} x {height} pixels; the limit is {max_pixels:,} pixels")
        whole = False
        if not decode and picture.mode != FLOAT:
            with suppress(Exception):  # then decoding says what is wrong
                whole = looks_whole(file, picture)
        if not whole:
            file.seek(0)
            _decode(_open_header(file, name), name)
    return width, height


def open_rgb(source: "str | bytes | Image.Image", name: str = "") -> Image.Image:
    """Decodes a picture to RGB, turned upright where its EXIF data say so.

    Args:
        source: A path, an encoded picture or an opened one.
        name: What messages call it, if it is no path.

    Raises:
        BadImageError: It is missing or cannot be decoded.
    """
    if isinstance(source, Image.Image):
        return _decode(source, "in memory")
    with open_file(source) as file:
        return _decode(_open_header(file, name or _name(source)), name or _name(source))


class Shape:
    """What becomes of a picture's shape before the processor sees it, in training and in evaluation alike.

    Args:
        processor: The model's.
        aspect: "pad": centred on a square of the processor's mean colour, as LLaVA-1.5 does (its
            ``image_aspect_ratio: pad``); "keep": as it is; "auto": "pad" where the processor would cut off the ends of an oblong
            picture, as CLIP's does, and so LLaVA-1.5's at Hugging Face.

    Attributes:
        aspect: "pad" or "keep".
    """

    def __init__(self, processor: Processor, aspect: ImageAspect) -> None:
        check_image_aspect(aspect)
        image_processor = getattr(processor, "image_processor", None)
        crops = bool(getattr(image_processor, "do_center_crop", False))
        self.aspect: ImageAspect = aspect if aspect != "auto" else "pad" if crops else "keep"
        mean = getattr(image_processor, "image_mean", None) or (0.5, 0.5, 0.5)
        self._colour = tuple(int(255 * value) for value in mean)

    def fit(self, image: Image.Image) -> Image.Image:
        """The picture in that shape."""
        size = self.size(*image.size)
        if image.size == size:
            return image
        if size[0] * size[1] > (limit := Image.MAX_IMAGE_PIXELS or 2**63):
            raise BadImageError(
                f"a picture of {image.width} x {image.height} pixels would be padded to a square of {size[0] * size[1]:,}; "
                f"the limit is {limit:,}"
            )
        square = Image.new("RGB", size, self._colour)
        square.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
        return square

    def size(self, width: int, height: int) -> tuple[int, int]:
        """The size of such a picture in that shape; either order of the two will do."""
        return (width, height) if self.aspect == "keep" else (max(width, height), max(width, height))


def _name(source: str | bytes) -> str:
    return shortened(source, _SHOWN) if isinstance(source, str) else "in the image column"


def open_file(source: str | bytes, kind: str = "image") -> BinaryIO:
    """Opens a picture's or a video's file, or what it holds.

    Raises:
        BadImageError: It is missing, cannot be read, or is no regular file.
    """
    if isinstance(source, bytes):
        return io.BytesIO(source)
    name = _name(source)
    try:
        mode = os.stat(source).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # opening a pipe would wait for whoever writes into it
            raise BadImageError(f"{kind} {name} is not a regular file")
        return open(source, "rb")
    except FileNotFoundError:
        leads_to = f" (a link to {os.path.realpath(source)})" if os.path.realpath(source) != os.path.abspath(source) else ""
        raise MissingImageError(f"{kind} {name} does not exist{leads_to}") from None
    except OSError as error:
        raise BadImageError(f"{kind} {name} cannot be read: {error.strerror}") from error


def _open_header(file: BinaryIO, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # The limit of the caller decides, not Pillow's softer one.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(file)
    except UnidentifiedImageError:
        raise BadImageError(f"image {name} is not a picture in a format that Pillow knows") from None
    except Image.DecompressionBombError as error:
        raise BadImageError(f"image {name} is too large: {error}") from error
    except Exception as error:  # each format has its own ways to fail
        raise BadImageError(f"image {name} has a broken header: {foreign(error)}") from error
    if picture.format in _PROGRAMS:
        raise BadImageError(f"image {name} is {picture.format}, a program that another one would have to run; save it as PNG")
    return picture


def _decode(picture: Image.Image, name: str) -> Image.Image:
    try:
        with panics_as_errors():
            return to_rgb(ImageOps.exif_transpose(picture))
    except Exception as error:
        raise BadImageError(f"image {name} cannot be decoded: {foreign(error)}") from error
