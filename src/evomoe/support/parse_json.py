"""JSON text of users' files, with errors that say where it is broken."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evomoe.support.names import refuse_special

LARGEST = 1_500_000_000
"""Bytes of a JSON file that is read at once; its objects take some four times as much memory."""


@contextmanager
def shallow(name: str | Path) -> Iterator[None]:
    """Lets JSON in the block, whoever reads it, be refused with a sentence if its lists and objects are nested too deeply."""
    try:
        yield
    except RecursionError as error:
        raise ValueError(f"{name}: broken JSON: lists or objects are nested too deeply.") from error


def parse_json(text: str, name: str, first_line: int = 1) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is broken, with the name, line and column; or an object has one key twice, of which one would be lost.
    """
    try:
        with shallow(name):
            return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise ValueError(f"{name}, line {line}, column {error.colno}: broken JSON: {error.msg}") from error
    except _TwiceError as error:
        line = f", line {first_line}" if first_line > 1 else ""
        raise ValueError(f"{name}{line}: {error}") from error
    except ValueError as error:  # too deep; a number of thousands of digits
        raise error if "broken JSON" in str(error) else ValueError(f"{name}: broken JSON: {error}") from error
    except MemoryError as error:
        raise ValueError(
            f"{name}: this much JSON does not fit into memory; write JSON lines (.jsonl), one record a line."
        ) from error


class _TwiceError(ValueError):
    """An object has one key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise _TwiceError(f"the key {twice!r} occurs twice in one object.")
    return made


def check_size(path: str | Path) -> None:
    """Raises ValueError for a JSON file that is too large to be read at once, or no file."""
    refuse_special(path)
    size = os.stat(path).st_size
    if size > LARGEST:
        raise ValueError(
            f"{path} has {size / 1e9:.1f} GB; JSON of more than {LARGEST / 1e9:g} GB is not read at once. Write JSON lines (.jsonl), one "
            "record a line, which are read one by one: jq -c '.[]' OLD.json > NEW.jsonl"
        )


def read_json(path: str | Path) -> Any:
    """The value of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is broken, or too large.
    """
    check_size(path)
    try:
        return parse_json(Path(path).read_text(encoding="utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: the file is not UTF-8 text: {error.reason}.") from error
