"""Where a benchmark's data come from: a local folder with the official files, or Hugging Face parquet.

Every file that is read is noted with its checksum, so that a result can say which version of the data it is about.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomoe.evaluation.fields import json_lines
from evomoe.support.names import own_files, refuse_special
from evomoe.support.parse_json import check_size, parse_json
from evomoe.support.text import counted

if TYPE_CHECKING:
    import datasets

    from evomoe.data.images import ImageFolder


_NAMED = 3  # files in a message


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


class DataFolder:
    """The data of one benchmark.

    Args:
        benchmark: its name.
        path: its folder, or one of the files in it, which is then preferred; None looks at the hub alone.
        made_here: whether evomoe makes the data itself, so that they are published nowhere.

    Attributes:
        read: every file that was read, by name, with its checksum and, for tables, its number of rows.
    """

    def __init__(self, benchmark: str, path: str | Path | None, made_here: bool = False) -> None:
        self.benchmark, self.made_here = benchmark, made_here
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
        where = "`data_root`" if self.path is None else str(self.path)
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
        refuse_special(path)
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
        check_size(path)
        return parse_json(self.text(path), str(path))

    def json_lines(self, path: Path) -> list[Any]:
        """The objects of a file with one JSON object a line.

        Raises:
            ValueError: a line is broken.
        """
        return [record for record in json_lines(self.text(path), path) if record is not None]

    def parquet(self, repository: str, config: str | None, split: str, size: str = "") -> "datasets.Dataset":
        """A split of a dataset in Hugging Face's format, its pictures still encoded.

        It lies in the benchmark's folder (parquet files as on the hub) or on the hub, which asks for no token for public data.

        Args:
            repository: its name on the hub.
            config: one of its configurations; None for the only one.
            split: such as "test".
            size: what the whole repository takes, as its page on the hub says; empty if that is not known.

        Raises:
            MissingDataError: it is in neither place.
        """
        import datasets

        local = self.path if self.path is not None and own_files(self.path, "**/*.parquet") else None
        try:
            if self.path is not None and local is None:
                raise FileNotFoundError("no parquet file there; the hub is asked only if no folder is named")
            if local is not None:
                files = _parquet_files(local, config, split)
                rows = datasets.load_dataset("parquet", data_files={split: files}, split=split)
                fingerprint = _fingerprint(local, files)
            else:
                rows = datasets.load_dataset(repository, config, split=split)
                fingerprint = rows._fingerprint
        except Exception as error:  # datasets and the hub's client raise many kinds, and all mean the same here
            raise MissingDataError(self._without_parquet(repository, size, error)) from error
        for column, feature in rows.features.items():
            if isinstance(feature, datasets.Image):
                rows = rows.cast_column(column, datasets.Image(decode=False))
        self.read[f"{repository}, {config or 'default'}, {split}"] = {"fingerprint": fingerprint, "rows": len(rows)}
        return rows

    def _without_parquet(self, repository: str, size: str, error: Exception) -> str:
        """The message where there are neither the official files nor the parquet."""
        if self.made_here:
            return (
                f"{self.benchmark}: its files are not in {self.path}. evomoe makes the small sets itself: leave `data_root` out, or "
                "name a split of a world, such as the folder test in it."
            )
        reason = " ".join(str(error).split())[:300]
        where = f"in {self.path}" if self.path else f"on the hub as {repository}"
        place = self.path or f"DIR/{self.benchmark}"
        option = "" if self.path else ", for `data_root=DIR`"
        wanted = "; ".join(file.describe() for file in self._sought.values())
        known_size = f" (about {size})" if size else ""
        return (
            f"{self.benchmark}: its data are not {where} ({reason}): put what is published, with its folder of pictures, into "
            f"{place}{option}: {wanted}; or fetch the parquet{known_size}: "
            f"hf download --repo-type dataset {repository} --local-dir {place}"
        )

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
                    "Get the published one, or score this one with `any_version`."
                )
        if known and found not in known and not self.published:
            first = list(self.read.items())[:_NAMED]
            files = "; ".join(f"{name} {' '.join(f'{k} {v}' for k, v in facts.items())}" for name, facts in first)
            versions = " or ".join(f"{count:,}" for count in known)
            raise ValueError(
                f"{self.benchmark}: {counted(found, 'question')} read, but the known versions have {versions} ({files}). "
                "Get a known version, or score this one with `any_version`."
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
