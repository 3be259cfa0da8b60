"""Records of several sources, each with a weight: how often they are taken in one pass."""

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple, overload

from evomoe.data.records import Record, Records


class Share(NamedTuple):
    """A source's part of a pass.

    Attributes:
        name: what messages call the source.
        weight: how often its records are taken in a pass.
        records: how many it has.
    """

    name: str
    weight: float
    records: int

    @property
    def taken(self) -> int:
        """How many records a pass takes of it; one that is taken twice counts twice."""
        return max(1, round(self.weight * self.records)) if self.records else 0


class MixedRecords(Sequence[Record]):
    """The records of several sources, one source after the other, each once; how often they are taken is for the one who trains.

    Args:
        parts: the records of each source.
        weights: of each source.

    Attributes:
        skipped: The message of every record left out.
        notes: The fields that nobody reads.
    """

    def __init__(self, parts: Sequence[Records], weights: Sequence[float]) -> None:
        self.parts, self.weights = list(parts), list(weights)
        self.skipped = [message for part in parts for message in part.skipped]
        self.notes = [note for part in parts for note in part.notes]
        self._ends = [*itertools.accumulate(len(part) for part in parts)]

    def __len__(self) -> int:
        return self._ends[-1]

    def source_of(self, number: int) -> int:
        """Which source a record is of, counted from 0."""
        return bisect_right(self._ends, number)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        source = self.source_of(number)
        return self.parts[source][number - self._ends[source]]  # counted from the source's end
