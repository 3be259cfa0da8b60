"""Where rows of training data come from: JSON, JSON lines, saved and hub datasets, objects in memory."""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomoe.data.json_lines import JsonLines
from evomoe.data.row import CONVERSATION, FIELDS, is_refused
from evomoe.support.names import not_on_hub, refuse_missing, refuse_special, split_name
from evomoe.support.parse_json import check_size, parse_json, shallow
from evomoe.support.text import kind_of

if TYPE_CHECKING:
    import datasets


_HEAD = 1 << 20
"""Bytes from which a file is known to be JSON lines, whatever its name."""


@dataclass(frozen=True)
class Source:
    """Rows as they stand in the source.

    Attributes:
        name: The file or dataset, for messages.
        rows: The rows, in order; pictures of a datasets column stay encoded.
        folder: The folder that relative picture paths start from.
        unread: Columns that nobody reads, which the rows do not have.
    """

    name: str
    rows: Sequence[Any]
    folder: str
    unread: tuple[str, ...] = ()


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


def _open_named(name: str) -> Source:
    path = Path(name)
    suffix = path.suffix.lower()
    refuse_special(path)
    if path.is_file():
        if suffix not in (".json", ".jsonl"):
            raise ValueError(f"{name}: data files end in .json (a list of records) or .jsonl (one record a line)")
        rows = _read_json(path) if suffix == ".json" else JsonLines(path)
        return Source(path.name, rows, str(path.resolve().parent))
    folder, split = split_name(name)
    refuse_missing(folder)
    return _load_saved(folder, split) if os.path.isdir(folder) else _load_from_hub(folder, split)


def _read_json(path: Path) -> Sequence[Any]:
    with path.open("rb") as file:
        if _looks_like_lines(file.read(_HEAD)):
            return JsonLines(path)
    check_size(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name}: the file is not UTF-8 text: {error.reason}") from error
    try:
        rows = parse_json(text, path.name)
    except ValueError as error:
        if _looks_like_lines(text.encode()):
            return JsonLines(path)
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
        raise ValueError(f"{folder}: the folder was not written by datasets.save_to_disk: {error}") from error
    if isinstance(loaded, datasets.DatasetDict):
        wanted = split or "train"
        if wanted not in loaded:
            raise ValueError(f"{folder}: no split {wanted!r}; name one as {folder}:<split>, of {sorted(loaded)}")
        loaded = loaded[wanted]
    elif split is not None:
        raise ValueError(f"{folder}: the saved dataset has no splits, but split {split!r} is asked for")
    return _from_dataset(loaded, os.path.basename(os.path.abspath(folder)))


def _load_from_hub(name: str, split: str | None) -> Source:
    import datasets

    try:
        loaded = datasets.load_dataset(name, split=split or "train")
    except (OSError, ValueError) as error:
        raise ValueError(not_on_hub(name, "dataset", error)) from error
    return _from_dataset(loaded, name)


def _from_dataset(dataset: object, name: str) -> Source:
    import datasets

    if not isinstance(dataset, datasets.Dataset):
        raise ValueError(
            f"{name}: expected a datasets.Dataset (one split, not streamed) or a list of records, not {type(dataset).__name__}"
        )
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
    unread = tuple(column for column in dataset.column_names if column not in kept)
    return Source(name, columns.with_format(None), os.getcwd(), unread)
