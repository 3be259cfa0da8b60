"""Where rows of training data come from: JSON, JSON lines, saved and hub datasets, objects in memory."""

import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evomoe.data.json_rows import JsonRows, json_lines, places_in_list, state_of
from evomoe.data.kept import Found, Keeper
from evomoe.data.row import CONVERSATION, FIELDS, is_refused, value_of
from evomoe.support.content import file_hash, text_hash
from evomoe.support.names import not_on_hub, refuse_missing, refuse_special, split_name
from evomoe.support.parse_json import check_size, parse_json, shallow
from evomoe.support.text import kind_of, shortened

if TYPE_CHECKING:
    import datasets


_HEAD = 1 << 20
"""Bytes from which a file is known to be JSON lines, whatever its name."""
_LARGE = 1 << 20
"""Bytes from which on the places of a file's records are kept."""


@dataclass(frozen=True)
class Source:
    """Rows as they stand in the source.

    Attributes:
        name: The file or dataset, for messages.
        rows: The rows, in order; pictures of a datasets column stay encoded.
        folder: The folder that relative picture paths start from.
        unread: Columns that nobody reads, which the rows do not have.
        keeper: Keeps what is found out about the rows; None for rows in memory.
        first: The number of the first row, for messages.
    """

    name: str
    rows: Sequence[Any]
    folder: str
    unread: tuple[str, ...] = ()
    keeper: Keeper | None = None
    first: int = 0

    def where(self, number: int, row: object) -> str:
        """Names a record in messages."""
        identity = value_of(row, "id") if isinstance(row, Mapping) else None
        known = "" if identity is None else f" (id {shortened(repr(identity))})"
        return f"{self.name}, record {self.first + number}{known}"

    def some(self, numbers: Iterable[int]) -> Iterator[Any]:
        """The rows of these numbers, in the way that is quickest for many."""
        rows: Any = self.rows
        if isinstance(rows, JsonRows):
            return rows.some(numbers)
        return iter(rows.select(numbers)) if hasattr(rows, "select") else map(rows.__getitem__, numbers)


def open_source(data: "str | os.PathLike[str] | Sequence[Any] | datasets.Dataset") -> Source:
    """Opens what `load_records` accepts as `data`.

    Raises:
        ValueError: There is no such file or dataset, or it cannot be read.
    """
    if isinstance(data, str | os.PathLike):
        return _open_named(os.fspath(data))
    if isinstance(data, Sequence):
        return Source("the given list", data, os.getcwd())
    return _from_dataset(data, "the given dataset")


def open_sources(names: Sequence[str]) -> dict[str, Source]:
    """Opens several files or datasets; messages call those that end alike by their whole names.

    Raises:
        ValueError: There is no such file or dataset, or it cannot be read.
    """
    opened = {name: open_source(name) for name in names}
    short = [source.name for source in opened.values()]
    return {name: source if short.count(source.name) == 1 else replace(source, name=name) for name, source in opened.items()}


def _open_named(name: str) -> Source:
    path = Path(name)
    suffix = path.suffix.lower()
    refuse_special(path)
    if path.is_file():
        if suffix not in (".json", ".jsonl"):
            raise ValueError(f"{name}: data files end in .json (a list of records) or .jsonl (one record a line)")
        keeper = Keeper(path.name, partial(file_hash, path), path.parent)
        rows = _read_json(path, keeper) if suffix == ".json" else json_lines(path)
        return Source(path.name, rows, str(path.resolve().parent), keeper=keeper)
    folder, split = split_name(name)
    refuse_missing(folder)
    return _load_saved(folder, split) if os.path.isdir(folder) else _load_from_hub(folder, split)


def _read_json(path: Path, keeper: Keeper) -> Sequence[Any]:
    with path.open("rb") as file:
        state = state_of(file)
        if _looks_like_lines(file.read(_HEAD)):
            return json_lines(path)
    check_size(path)

    places = places_in_list(_text(path)) if state[0] < _LARGE else _kept_places(path, keeper)
    if places is not None:
        return JsonRows(path, state, places)
    text = _text(path)
    try:
        rows = parse_json(text.removeprefix("\ufeff"), path.name)
    except ValueError as error:
        if _looks_like_lines(text.encode()):
            return json_lines(path)
        if "Extra data" not in str(error):
            raise
        raise ValueError(
            f"{error}: there is more than one value; write a list of records, or JSON lines, a record a line."
        ) from error
    if isinstance(rows, dict) and any(field in rows for field in CONVERSATION):  # JSON lines of one line
        return [rows]
    if not isinstance(rows, list):
        raise ValueError(f"{path.name}: the file must hold a list of records, not {_json_type(rows)}")
    return rows


def _kept_places(path: Path, keeper: Keeper) -> np.ndarray | None:
    return keeper.outcome(
        "places",
        {},
        make=lambda _: places_in_list(_text(path)),
        write=lambda places_N2: None if places_N2 is None else Found({"places_N2": places_N2}, {}),
        read=lambda found: found.arrays["places_N2"],
    )


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name}: the file is not UTF-8 text: {error.reason}") from error


def _looks_like_lines(start: bytes) -> bool:
    """Whether a file that begins so is JSON lines: its first two lines are objects."""
    whole = start.decode("utf-8-sig", errors="ignore").split("\n")
    first = [line for line in whole[:20] if line.strip()][:2]
    try:
        return len(first) == 2 and all(isinstance(parse_json(line, ""), dict) for line in first)
    except ValueError:
        return False


def _json_type(value: object) -> str:
    return "an object" if isinstance(value, Mapping) else kind_of(value)


def _load_saved(folder: str, split: str | None) -> Source:
    import datasets

    try:
        with shallow(folder):
            loaded = datasets.load_from_disk(folder)
    except FileNotFoundError as error:
        raise ValueError(
            f"{folder}: the folder was not written by datasets.save_to_disk: {error}. One of shards (.tar, .parquet, .jsonl) is read "
            "with `streaming`."
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        wanted = split or "train"
        if wanted not in loaded:
            raise ValueError(f"{folder}: no split {wanted!r}; name one as {folder}:<split>, of {sorted(loaded)}")
        loaded = loaded[wanted]
    elif split is not None:
        raise ValueError(f"{folder}: the saved dataset has no splits, but split {split!r} is asked for")
    return _from_dataset(loaded, os.path.basename(os.path.abspath(folder)), Path(folder))


def _load_from_hub(name: str, split: str | None) -> Source:
    import datasets

    try:
        loaded = datasets.load_dataset(name, split=split or "train")
    except (OSError, ValueError) as error:
        raise ValueError(not_on_hub(name, "dataset", error)) from error
    return _from_dataset(loaded, name)


def _from_dataset(dataset: object, name: str, home: Path | None = None) -> Source:
    import datasets

    if not isinstance(dataset, datasets.Dataset):
        raise ValueError(
            f"{name}: expected a datasets.Dataset (one split, not streamed) or a list of records, not {type(dataset).__name__}"
        )
    columns, unread = read_columns(dataset)
    keeper = Keeper(name, partial(_content, dataset), home) if dataset.cache_files else None
    return Source(name, columns, os.getcwd(), unread, keeper)


def read_columns(dataset: Any) -> tuple[Any, tuple[str, ...]]:
    """A datasets.Dataset, or one that is streamed, with the columns that are read, pictures encoded; and the names of the others."""
    import datasets

    kept = [column for column in dataset.column_names if column in FIELDS or is_refused(column)]
    columns: Any = dataset.select_columns(kept)
    encoded = datasets.Image(decode=False)
    for column, feature in columns.features.items():
        if isinstance(getattr(feature, "feature", None), datasets.Image):
            columns = columns.cast_column(column, datasets.List(encoded))
        elif hasattr(feature, "decode"):  # pictures, and what is refused
            undecoded = copy.copy(feature)
            undecoded.decode = False
            columns = columns.cast_column(column, undecoded)
    return columns.with_format(None), tuple(column for column in dataset.column_names if column not in kept)


def _content(dataset: Any) -> str:
    """What a dataset holds: its history, and the names, sizes and dates of its files, which may be too large to be read."""
    files = [Path(file["filename"]) for file in dataset.cache_files]
    states = [f"{file.name} {state.st_size} {state.st_mtime_ns}" for file in files for state in [file.stat()]]
    return text_hash([dataset._fingerprint, *states])
