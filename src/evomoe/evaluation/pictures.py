"""Pictures that are not read before they are needed: a file, a cell of a dataset, base64 text."""

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from evomoe.evaluation.data_folder import MissingDataError
from evomoe.support.text import counted

if TYPE_CHECKING:
    import datasets
    from PIL import Image

    from evomoe.data.images import ImageFolder


class Picture(Protocol):
    """A picture that is not read before it is needed."""

    @property
    def key(self) -> str:
        """Names the picture: questions about the same one have equal keys, and it is decoded and encoded once for all."""
        ...

    def open(self) -> "Image.Image":
        """Decodes it to RGB; raises BadImageError, naming it."""
        ...

    def fingerprint(self) -> str:
        """A hash of its content: tells it from another picture of the same name."""
        ...


@dataclass(frozen=True)
class FilePicture:
    """A picture file."""

    path: str

    @property
    def key(self) -> str:
        return self.path

    def open(self) -> "Image.Image":
        from evomoe.data.images import open_rgb

        return open_rgb(self.path)

    def fingerprint(self) -> str:
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()


@dataclass(frozen=True)
class CellPicture:
    """A picture in a row of a dataset, read from disk when it is opened; ``key`` names it.

    A cell without bytes names a file, which must lie in ``root``, the folder of the data, or where Hugging Face keeps what it fetched.
    """

    rows: "datasets.Dataset" = field(repr=False, compare=False)
    number: int
    key: str
    column: str = "image"
    root: Path | None = None

    def open(self) -> "Image.Image":
        from evomoe.data.images import open_rgb

        return open_rgb(self._source(), self.key)

    def fingerprint(self) -> str:
        source = self._source()
        if isinstance(source, bytes):
            return hashlib.blake2b(source).hexdigest()
        return FilePicture(source).fingerprint()

    def _source(self) -> str | bytes:
        from datasets import config
        from huggingface_hub.constants import HF_HUB_CACHE

        from evomoe.data.images import BadImageError, ImageFolder

        cell = self.rows[self.number][self.column]
        if cell and cell.get("bytes"):
            return cell["bytes"]
        if not cell or not cell.get("path"):
            raise BadImageError(f"image {self.key} is not there: its cell is empty")
        for folder in filter(None, (self.root, config.HF_DATASETS_CACHE, HF_HUB_CACHE)):
            with suppress(BadImageError):
                return ImageFolder(folder, allow_absolute_outside=False).resolve(cell["path"])
        raise BadImageError(f"image {self.key}: its path {cell['path']!r:.200} leaves the folder of the data")


@dataclass(frozen=True)
class EncodedPicture:
    """A picture as base64 text, as MMBench's tables hold them."""

    text: str = field(repr=False)
    key: str

    def open(self) -> "Image.Image":
        import base64

        from evomoe.data.images import BadImageError, open_rgb

        try:
            content = base64.b64decode(self.text, validate=True)
        except ValueError as error:
            raise BadImageError(f"image {self.key} is not base64: {error}") from error
        return open_rgb(content, self.key)

    def fingerprint(self) -> str:
        return hashlib.blake2b(self.text.encode()).hexdigest()


def picture_file(images: "ImageFolder", name: str, where: str) -> FilePicture:
    """A picture of a folder by its name there; ``where`` names file and record in the error.

    Raises:
        ValueError: the name leads out of the folder.
    """
    try:
        return FilePicture(images.resolve(name))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def check_pictures(name: str, pictures: Iterable[Picture]) -> None:
    """Looks whether picture files are there.

    Raises:
        MissingDataError: some do not exist: how many, and the first.
        ValueError: one is a folder, a pipe or a device, which may never end.
    """
    paths = dict.fromkeys(picture.path for picture in pictures if isinstance(picture, FilePicture))
    no_files = [path for path in paths if not Path(path).is_file()]
    missing = [path for path in no_files if not Path(path).exists()]
    if missing:
        raise MissingDataError(f"{name}: {counted(len(missing), 'picture')} of {len(paths):,} missing, first {missing[0]}.")
    if no_files:
        raise ValueError(f"{name}: image {no_files[0]} is not a regular file.")
