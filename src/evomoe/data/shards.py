"""Where a stream's rows come from: shards, each of which is read from any of its rows on."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from evomoe.data.json_rows import rows_of_lines
from evomoe.data.samples import KEY, row_of_sample, rows_of_tar
from evomoe.data.sources import Source, open_source, read_columns
from evomoe.data.turns import DamagedShardError
from evomoe.support.errors import foreign
from evomoe.support.names import is_pattern, matching, not_on_hub, own_files, refuse_missing, split_name

KINDS = (".tar", ".parquet", ".jsonl", ".json")
"""Files that are shards."""
_SPLIT = re.compile("train|test|val|dev")
"""How the names of shards begin that are of one split."""


@dataclass(frozen=True)
class Shard:
    """A part of a source.

    Attributes:
        name: what messages call it.
        folder: the folder that relative picture paths start from.
        read: gives the rows from a number on.
        unread: columns that nobody reads, which the rows do not have.
    """

    name: str
    folder: str
    read: Callable[[int], Iterator[Any]]
    unread: tuple[str, ...] = ()

    def rows(self, start: int = 0) -> Iterator[Source]:
        """The rows from a number on, each as a source of its own.

        Raises:
            DamagedShardError: the shard cannot be read on.
        """
        try:
            for number, row in enumerate(self.read(start), start):
                yield Source(self.name, [row], self.folder, first=number)
        except Exception as error:  # of a file, a network, a library
            said = str(error) if os.path.basename(self.name) in str(error) else f"{self.name}: {foreign(error)}"
            raise DamagedShardError(said) from error


def open_shards(name: str) -> tuple[Shard, ...]:
    """The shards of a source: one of a file, one for each file of a folder or a pattern, those that a hub dataset has.

    Raises:
        ValueError: there is none, or the files are of several kinds.
    """
    if files := _files(name):
        if len(kinds := {file.suffix.lower() for file in files}) > 1:
            raise ValueError(f"{name}: shards are of one kind, and these are {' and '.join(sorted(kinds))}.")
        if not kinds <= {*KINDS}:
            raise ValueError(f"{name}: shards are files that end in {', '.join(KINDS)}.")
        if kinds == {".parquet"}:
            try:
                return _of_dataset(name, [*map(str, files)], "parquet", data_files=[*map(str, files)], split="train")
            except Exception as error:  # of pyarrow, of datasets
                raise ValueError(f"{name}: {foreign(error)}") from error
        return tuple(Shard(str(file), str(file.resolve().parent), partial(_rows_of_file, file)) for file in files)
    folder, split = split_name(name)
    refuse_missing(folder)
    if not os.path.exists(folder):
        try:
            return _of_dataset(folder, [], folder, split=split or "train")
        except (OSError, ValueError) as error:
            raise ValueError(not_on_hub(folder, "dataset", error)) from error
    source = open_source(name)  # a folder of save_to_disk, whose rows lie on the disk
    return (Shard(source.name, source.folder, partial(_rows_of_source, source), source.unread),)


def _files(name: str) -> list[Path]:
    if is_pattern(name):
        return matching(name)
    path = Path(name)
    if path.is_dir():
        found = [file for file in own_files(path, "*") if file.suffix.lower() in KINDS]
        if any(file.name in ("state.json", "dataset_dict.json") for file in found):
            return []
        splits = {split[0]: file for file in found if (split := _SPLIT.match(file.name))}
        if len(splits) > 1:
            raise ValueError(
                f"{name} holds shards of several splits: {', '.join(file.name for file in splits.values())}. Name those that are meant, "
                f"such as '{path}/train-*{found[0].suffix}'."
            )
        return found
    return [path] if path.is_file() else []


def _rows_of_file(path: Path, start: int) -> Iterator[Any]:
    if path.suffix.lower() == ".tar":
        return rows_of_tar(path, start)
    if path.suffix.lower() == ".jsonl":
        return rows_of_lines(path, start)
    return _rows_of_source(open_source(path), start)


def _rows_of_source(source: Source, start: int) -> Iterator[Any]:
    return source.some(range(start, len(source.rows)))


def _of_dataset(name: str, files: list[str], *what: str, **options: Any) -> tuple[Shard, ...]:
    """The shards of what ``datasets`` streams.

    Args:
        name: of the source.
        files: it may have a shard for each of these.
        what, options: of ``load_dataset``.
    """
    import datasets

    dataset: Any = datasets.load_dataset(*what, streaming=True, **options)
    columns, unread = dataset.column_names or (), ()  # JSON has none until it is read
    if KEY in columns:
        dataset = dataset.decode(False)
    elif columns:
        dataset, unread = read_columns(dataset)
    count = dataset.num_shards
    numbered = [f"{name}, shard {number}" if count > 1 else name for number in range(count)]
    folder = str(Path(files[0]).resolve().parent) if files else os.getcwd()
    return tuple(
        Shard(title, folder, partial(_rows_of_dataset, dataset.shard(count, number)), unread)
        for number, title in enumerate(files if len(files) == count else numbered)
    )


def _rows_of_dataset(shard: Any, start: int) -> Iterator[Any]:
    rows = iter(shard.skip(start))
    return map(row_of_sample, rows) if KEY in (shard.column_names or ()) else rows
