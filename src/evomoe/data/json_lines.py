"""JSON lines of any size: a line is parsed when its record is asked for."""

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from evomoe.support.parse_json import parse_json

_MARK = b"\xef\xbb\xbf"
"""What some programs write before UTF-8."""


class JsonLines(Sequence[Any]):
    """The values of a file with one on each line; empty lines are left out.

    Args:
        path: the file. It is opened for each access, so that processes may share this.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts, self._numbers = array("q"), array("q")
        start = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.removeprefix(_MARK if number == 1 else b"").strip():
                    self._starts.append(start)
                    self._numbers.append(number)
                start += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: Any) -> Any:
        """The value of a line, or of several.

        Raises:
            ValueError: a line is broken; the message names it.
        """
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        start = self._starts[index]
        with self.path.open("rb") as file:
            file.seek(start)
            return self._parsed(file.readline(), self._numbers[index])

    def __iter__(self) -> Iterator[Any]:
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.removeprefix(_MARK if number == 1 else b"").strip():
                    yield self._parsed(line, number)

    def _parsed(self, line: bytes, number: int) -> Any:
        try:
            text = line.rstrip(b"\r\n").decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path.name}, line {number}: the file is not UTF-8 text: {error.reason}") from error
        return parse_json(text, self.path.name, number)
