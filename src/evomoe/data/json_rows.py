"""Rows of JSON of any size: each is parsed when it is asked for, so that neither memory nor a run's start has to hold them all."""

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from os import fstat
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from evomoe.data.turns import BadRecordError
from evomoe.support.parse_json import parse_json, shallow

_MARK = b"\xef\xbb\xbf"
"""What some programs write before UTF-8."""
State = tuple[int, int]
_SPACE = re.compile(r"[ \t\n\r]*")
_ERRORS = (ValueError, RecursionError, StopIteration, MemoryError)


class JsonRows(Sequence[Any]):
    """The values that stand at some places of a file.

    Args:
        path: the file. It is opened for each access, so that processes may share this.
        state: its size and date, as ``state_of`` gives them: it must not change.
        places_N2: N values' first bytes, and the bytes after their last ones.
        lines_N: the numbers of their lines, for messages; by default 1, 2, 3 and so on.
    """

    def __init__(self, path: Path, state: State, places_N2: np.ndarray, lines_N: np.ndarray | None = None) -> None:
        self.path, self._state, self.places_N2, self._lines_N = path, state, places_N2, lines_N

    def __len__(self) -> int:
        return len(self.places_N2)

    def __getitem__(self, index: Any) -> Any:
        """A value, or several.

        Raises:
            ValueError: it is broken JSON, the message names the line; or the file is another one by now.
        """
        if isinstance(index, slice):
            return list(self.some(range(*index.indices(len(self)))))
        return next(self.some([range(len(self))[index]]))

    def __iter__(self) -> Iterator[Any]:
        return self.some(range(len(self)))

    def some(self, numbers: Iterable[int]) -> Iterator[Any]:
        """The values of these numbers, with one opening of the file."""
        with self.path.open("rb") as file:
            if state_of(file) != self._state:
                raise ValueError(f"{self.path}: the file has changed since it was opened; start the run anew, or put it back.")
            for number in numbers:
                yield self._value(file, number)

    def _value(self, file: BinaryIO, number: int) -> Any:
        start, end = self.places_N2[number].tolist()
        line = number + 1 if self._lines_N is None else int(self._lines_N[number])
        file.seek(start)
        return _parsed(file.read(end - start), self.path, line)


def json_lines(path: Path) -> JsonRows:
    """The values of a file with one on each line; empty lines are left out."""
    places, lines = [], []
    with path.open("rb") as file:
        state = state_of(file)
        for number, start, line in _lines(file):
            places.append((start, start + len(line.rstrip(b"\r\n"))))
            lines.append(number)
    return JsonRows(path, state, np.array(places, np.int64).reshape(-1, 2), np.array(lines, np.int64))


def rows_of_lines(path: Path, start: int) -> Iterator[Any]:
    """The values of such a file from a number on, of which those before it are passed over unread. The file is gone through once.

    In the place of a value that is broken JSON stands why.
    """
    with path.open("rb") as file:
        for number, _, line in itertools.islice(_lines(file), start, None):
            try:
                yield _parsed(line, path, number)
            except ValueError as error:
                yield BadRecordError(str(error))


def _lines(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """The lines that hold something: their numbers from 1, the bytes before them, what they hold."""
    start = 0
    for number, line in enumerate(file, 1):
        if line.removeprefix(_MARK if number == 1 else b"").strip():
            yield number, start, line
        start += len(line)


def _parsed(text: bytes, path: Path, line: int) -> Any:
    try:
        return parse_json(text.decode("utf-8-sig"), path.name, line)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name}, line {line}: the file is not UTF-8 text: {error.reason}") from error


def places_in_list(text: str) -> np.ndarray | None:
    """(N, 2) the bytes where the values of a JSON list stand in its file; None if the file's text is no whole list."""
    decoder, places = json.JSONDecoder(), []
    at = byte = 0
    ascii_only = text.isascii()

    def size(start: int, end: int) -> int:
        return end - start if ascii_only else len(text[start:end].encode("utf-8"))

    def skip(sign: str, position: int) -> int:
        position = _space(text, position)
        if text[position : position + 1] != sign:
            raise ValueError(sign)
        return _space(text, position + 1)

    try:
        with shallow(""):
            position = skip("[", int(text.startswith("\ufeff")))
            while text[position : position + 1] != "]":
                if places:
                    position = skip(",", position)
                end = decoder.raw_decode(text, position)[1]
                first = byte + size(at, position)
                byte, at = first + size(position, end), end
                places.append((first, byte))
                position = _space(text, end)
            whole = _space(text, position + 1) == len(text)
    except _ERRORS:
        return None
    return np.array(places, np.int64).reshape(-1, 2) if whole else None


def _space(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    assert found is not None
    return found.end()


def state_of(file: BinaryIO) -> State:
    """An opened file's size in bytes, and its date in nanoseconds."""
    state = fstat(file.fileno())
    return state.st_size, state.st_mtime_ns
