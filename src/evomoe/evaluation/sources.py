"""Where a benchmark's questions and pictures come from: a local folder with the official files, or Hugging Face parquet.

Every file that is read is noted with its checksum, so that a result can say which version of the data it is about.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomoe.data.sources import Pairs, parse_json
from evomoe.evaluation.base import Picture
from evomoe.words import counted

if TYPE_CHECKING:
    from types import UnionType

    import datasets
    from PIL import Image

    from evomoe.data.images import ImageFolder


_NAMED = 3  # files in a message
# What a whole repository takes, as its page on the hub says, where that is known.
_HUB_SIZES = {
    "lmms-lab-encoder/VQAv2": "44.8 GB",
    "lmms-lab-encoder/ScienceQA": "1.34 GB",
    "lmms-lab-encoder/POPE": "510 MB",
}


class MissingDataError(ValueError):
    """A benchmark's file is not where it was looked for; the message says where it goes and how to get it."""


@dataclass(frozen=True)
class DataFile:
    """A file that a benchmark reads, and what is known of the published one.

    Attributes:
        path: where it goes, below the benchmark's folder.
        origin: where it is published.
        md5: hexadecimal; empty if it is not known.
    """

    path: str
    origin: str
    md5: str = ""

    def describe(self) -> str:
        return f"{self.path} (from {self.origin}{f', MD5 {self.md5}' if self.md5 else ''})"


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
    """A picture in a row of a dataset, read from disk when it is opened; ``key`` names it."""

    rows: "datasets.Dataset" = field(repr=False, compare=False)
    number: int
    key: str
    column: str = "image"

    def open(self) -> "Image.Image":
        from evomoe.data.images import open_rgb

        cell = self.rows[self.number][self.column]
        return open_rgb(cell["bytes"] if cell.get("bytes") else cell["path"], self.key)

    def fingerprint(self) -> str:
        cell = self.rows[self.number][self.column]
        content = cell["bytes"] if cell.get("bytes") else Path(cell["path"]).read_bytes()
        return hashlib.blake2b(content).hexdigest()


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


class DataFolder:
    """The data of one benchmark.

    Args:
        benchmark: its name.
        path: its folder, or one of the files in it, which is then preferred; None looks at the hub alone.

    Attributes:
        read: every file that was read, by name, with its checksum and, for tables, its number of rows.
    """

    def __init__(self, benchmark: str, path: str | Path | None) -> None:
        self.benchmark = benchmark
        self._file = Path(path) if path is not None and Path(path).is_file() else None
        self.path = self._file.parent if self._file else None if path is None else Path(path)
        self.read: dict[str, dict[str, Any]] = {}
        self._sought: dict[str, DataFile] = {}
        self._found_file = False

    def find(self, *choices: DataFile) -> Path | None:
        """The first of these files that is there; None if there is none."""
        self._sought |= {choice.path: choice for choice in choices}
        if self.path is None:
            return None
        if self._file and self._file.name in {Path(choice.path).name for choice in choices}:
            self._found_file = True
            return self._file
        places = [self.path / choice.path for choice in choices]
        if self._file:  # the folder that was named may be one within the benchmark's
            places += [self.path / Path(choice.path).name for choice in choices]
        return next((place for place in places if place.exists()), None)

    def need(self, *choices: DataFile) -> Path:
        """The first of these files that is there.

        Raises:
            MissingDataError: none is; the message lists them.
        """
        if (path := self.find(*choices)) is not None:
            return path
        where = "--data-root DIR" if self.path is None else str(self.path)
        wanted = " or ".join(choice.describe() for choice in choices)
        raise MissingDataError(f"{self.benchmark}: missing in {where}: {wanted}.")

    def images(self, *names: str) -> "ImageFolder":
        """The folder of the pictures, which no name in an annotation file may leave: the first of ``names`` that exists.

        If none does, it is the first: answers can be scored without the pictures; `check_pictures` misses them.
        """
        from evomoe.data.images import ImageFolder

        assert self.path is not None
        found = next((self.path / name for name in names if (self.path / name).is_dir()), self.path / names[0])
        return ImageFolder(found, allow_absolute_outside=False)

    def text(self, path: Path) -> str:
        """A text file's content.

        Raises:
            ValueError: it is not UTF-8.
        """
        content = path.read_bytes()
        self.note(path.name if self.path is None else str(path.relative_to(self.path)), content)
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: the file is not UTF-8 text: {error.reason}.") from error

    def json(self, path: Path) -> Any:
        """A JSON file's content.

        Raises:
            ValueError: it is broken, with line and column, or an object has one key twice, which may be a question's id.
        """

        def make_object(pairs: Pairs) -> dict[str, Any]:
            made = dict(pairs)
            if len(made) < len(pairs):
                ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
                raise ValueError(f"{path}: the key {twice!r} occurs twice in one object.")
            return made

        return parse_json(self.text(path), str(path), make_object=make_object)

    def json_lines(self, path: Path) -> list[Any]:
        """The objects of a file with one JSON object a line.

        Raises:
            ValueError: a line is broken.
        """
        return [record for record in json_lines(self.text(path), path) if record is not None]

    def parquet(self, repository: str, config: str | None, split: str) -> "datasets.Dataset":
        """A split of a dataset in Hugging Face's format, its pictures still encoded.

        It lies in the benchmark's folder (parquet files as on the hub) or on the hub, which asks for no token for public data.

        Raises:
            MissingDataError: it is in neither place.
        """
        import datasets

        local = self.path is not None and any(self.path.rglob("*.parquet"))
        try:
            if self.path is not None and not local:
                raise FileNotFoundError("no parquet file there; the hub is asked only if no folder is named")
            if local:
                files = _parquet_files(self.path, config, split)
                rows = datasets.load_dataset("parquet", data_files={split: files}, split=split)
                fingerprint = _fingerprint(self.path, files)
            else:
                rows = datasets.load_dataset(repository, config, split=split)
                fingerprint = rows._fingerprint
        except Exception as error:  # datasets and the hub's client raise many kinds, and all mean the same here
            reason = " ".join(str(error).split())[:300]
            where = f"in {self.path}" if self.path else f"on the hub as {repository}"
            if self.benchmark.startswith("mini-"):
                raise MissingDataError(
                    f"{self.benchmark}: its files are not in {self.path}. evomoe makes the small sets itself: leave --data-root out, or "
                    "name a split of a world, such as the folder test in it."
                ) from error
            place = self.path or f"DIR/{self.benchmark}"
            wanted = "; ".join(file.describe() for file in self._sought.values())
            size = f" (about {_HUB_SIZES[repository]})" if repository in _HUB_SIZES else ""
            raise MissingDataError(
                f"{self.benchmark}: its data are not {where} ({reason}): put what is published, with its folder of pictures, into "
                f"{place}{'' if self.path else ', for --data-root DIR'}: {wanted}; or fetch the parquet{size}: "
                f"hf download --repo-type dataset {repository} --local-dir {place}"
            ) from error
        for column, feature in rows.features.items():
            if isinstance(feature, datasets.Image):
                rows = rows.cast_column(column, datasets.Image(decode=False))
        self.read[f"{repository}, {config or 'default'}, {split}"] = {"fingerprint": fingerprint, "rows": len(rows)}
        return rows

    @property
    def files(self) -> str:
        """What was read, for messages, which 1,187 files of MME's would not fit."""
        more = len(self.read) - _NAMED
        return ", ".join(list(self.read)[:_NAMED]) + (f" and {counted(more, 'more file')}" if more > 0 else "")

    def note(self, name: str, content: bytes) -> None:
        """Notes that a file was read."""
        self.read[name] = {"md5": hashlib.md5(content, usedforsecurity=False).hexdigest(), "bytes": len(content)}

    def check_file(self) -> None:
        """Raises ValueError if the file that was named is none that the benchmark reads."""
        if self._file and not self._found_file:
            files = ", ".join(file.path for file in self._sought.values())
            reads = f"It reads {files}." if files else "Its data ship in a package: name any folder."
            raise ValueError(f"{self._file}: {self.benchmark} reads no file of that name. {reads}")

    @property
    def published(self) -> bool:
        """Whether every file that was read is known, by its checksum, to be the published one."""
        known = {file.path: file.md5 for file in self._sought.values() if file.md5}
        return bool(self.read) and all(name in known and facts["md5"] == known[name] for name, facts in self.read.items())

    def check_version(self, found: int, known: tuple[int, ...]) -> None:
        """Raises ValueError if a file is not the published one, or is of none and no known version has that many questions."""
        for file in self._sought.values():
            md5 = self.read.get(file.path, {}).get("md5", file.md5)
            if file.md5 and md5 != file.md5:
                raise ValueError(
                    f"{self.benchmark}: {file.path} has the MD5 {md5}, the published one {file.md5}. "
                    "Get the published one, or score this one with --any-version."
                )
        if known and found not in known and not self.published:
            first = list(self.read.items())[:_NAMED]
            files = "; ".join(f"{name} {' '.join(f'{k} {v}' for k, v in facts.items())}" for name, facts in first)
            versions = " or ".join(f"{count:,}" for count in known)
            raise ValueError(
                f"{self.benchmark}: {counted(found, 'question')} read, but the known versions have {versions} ({files}). "
                "Get a known version, or score this one with --any-version."
            )


def _parquet_files(path: Path, config: str | None, split: str) -> list[str]:
    """The files of a split of a dataset in a folder.

    datasets, asked for the folder, hands out what it once read from another one of the same name, or from this one before its
    files were changed; asked for the files, it looks at where they are and how old.
    """
    import datasets

    files = datasets.load_dataset_builder(str(path), config).config.data_files or {}
    if split not in files:
        raise FileNotFoundError(f"no split {split!r} there")
    return [*files[split]]


def _fingerprint(folder: Path, files: Iterable[str]) -> str:
    """A hash of files' names within a folder and of their content, whatever the folder is called and how old they are."""
    total = hashlib.blake2b()
    for path in sorted(map(Path, files)):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "blake2b").digest()
        total.update(os.path.relpath(path, folder.resolve()).encode() + b"\0" + content)
    return total.hexdigest()


_KINDS: dict[Any, str] = {str: "text", int: "a whole number", list: "a list", str | int: "text or a whole number"}


def values(record: Any, where: str, *names: str, kind: "type | UnionType" = object) -> list[Any]:
    """The values of a record's fields, all of one kind; ``where`` names file and record in the error.

    Raises:
        ValueError: it has no such field, or what is there is of another kind.
    """
    missing = [name for name in names if not isinstance(record, dict) or name not in record]
    if missing:
        raise ValueError(f"{where}: the record has no field {missing[0]!r}. Is this the file that the benchmark publishes?")
    found = [record[name] for name in names]
    for name, value in zip(names, found, strict=True):
        if not isinstance(value, kind):
            raise ValueError(f"{where}: the field {name!r} must be {_KINDS[kind]}, not {value!r:.80}.")
    return found


def texts(record: Any, where: str, name: str) -> tuple[str, ...]:
    """The texts of a record's list.

    Raises:
        ValueError: there is none, or something else is in it.
    """
    (found,) = values(record, where, name, kind=list)
    for entry in found:
        if not isinstance(entry, str):
            raise ValueError(f"{where}: an entry of {name!r} must be text, not {entry!r:.80}.")
    return tuple(found)


def picture_file(images: "ImageFolder", name: str, where: str) -> FilePicture:
    """A picture of a folder by its name there; ``where`` names file and record in the error.

    Raises:
        ValueError: the name leads out of the folder.
    """
    try:
        return FilePicture(images.resolve(name))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def check_pictures(name: str, pictures: Iterable[Picture | None]) -> None:
    """Raises MissingDataError if picture files do not exist: how many, and the first."""
    paths = dict.fromkeys(picture.path for picture in pictures if isinstance(picture, FilePicture))
    missing = [path for path in paths if not Path(path).exists()]
    if missing:
        raise MissingDataError(f"{name}: {counted(len(missing), 'picture')} of {len(paths):,} missing, first {missing[0]}.")


def json_lines(text: str, path: Path) -> Iterator[Any]:
    """The values of a text with one on each line; None for an empty line."""
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines(), which splits at line ends of Unicode too
        yield parse_json(line, str(path), number) if line.strip() else None
