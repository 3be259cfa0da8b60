"""The fields of a record that a file holds: there, of the right kind, or an error that names file and record."""

import csv
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomoe.support.parse_json import parse_json

if TYPE_CHECKING:
    from types import UnionType

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


def json_lines(text: str, path: Path) -> Iterator[Any]:
    """The values of a text with one on each line; None for an empty line."""
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines(), which splits at line ends of Unicode too
        yield parse_json(line, str(path), number) if line.strip() else None


def table_rows(text: str, path: Path) -> list[dict[str, str]]:
    """The rows of a tab-separated table by the names in its first line; cells may be long pictures.

    Raises:
        ValueError: the table is broken, with file and line.
    """
    usual = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.DictReader(io.StringIO(text), delimiter="\t", restval="")
    try:
        return list(reader)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.reader.line_num}: broken table ({error}).") from error
    finally:
        csv.field_size_limit(usual)
