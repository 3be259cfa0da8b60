"""Records of sources that are read from their beginning to their end, again and again, and never held as a whole.

A stream is dealt out to lanes, one for each process. A lane reads shards of its own where their number is a multiple of the lanes;
otherwise it reads all and takes each N-th row. It reads a block of rows, hands them out shuffled, and reads the next block meanwhile. Where it
stands is therefore told in a few numbers for each source: the pass, the shard and the row at which the block begins, and how many of
its rows were handed out.

The buffer of ``datasets`` would not do: it is lost when a run stops, and filled anew with other rows.
"""

import itertools
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import Any, NamedTuple

import numpy as np

from evomoe.data.shards import Shard
from evomoe.data.sources import Source
from evomoe.data.turns import BadRecordError

logger = logging.getLogger(__name__)

HEAD = 256
"""Records of each source that are read before a run begins."""
_EMPTY_PASSES = 20
"""So many in a row mean that there is nothing for a lane. One means little: its shards of that pass may be empty."""
State = dict[str, Any]
"""What JSON holds."""


@dataclass(frozen=True)
class StreamSource:
    """A source of a stream.

    Attributes:
        name: as the user wrote it.
        shards: its parts.
        weight: its share of the records, among the other sources' weights.
        image_root: the folder of its pictures; None if they lie beside the shards, or in them.
    """

    name: str
    shards: tuple[Shard, ...]
    weight: float = 1.0
    image_root: str | None = None

    def head(self) -> Source:
        """The first rows, as they stand.

        Raises:
            BadRecordError: they cannot be read.
        """
        beside = (shard for shard in self.shards if shard.folder == self.shards[0].folder)
        found = [*itertools.islice((row for shard in beside for row in shard.rows()), HEAD)]
        name = found[0].name if len({row.name for row in found}) == 1 else self.name
        return Source(name, [row.rows[0] for row in found], self.shards[0].folder, self.shards[0].unread)


class StreamedRow(NamedTuple):
    """A row that is handed out: a source of this one row, and the folder of its pictures."""

    source: Source
    image_root: str | None

    @property
    def where(self) -> str:
        """Names the record in messages."""
        return self.source.where(0, self.source.rows[0])


class Place(NamedTuple):
    """Where a row stands in a lane: in which pass, in which shard of the pass's order, and which row of the shard it is."""

    round: int = 0
    shard: int = 0
    row: int = 0


class _Blocks:
    """One source's rows for one lane, without an end.

    Args:
        buffer: the rows of a block.
        seed, lane: shuffle them.
        taken, first, place: how many rows were handed out, how many before the block, and where the block begins.
    """

    def __init__(
        self, source: StreamSource, buffer: int, seed: int, lane: int, lanes: int, taken: int, first: int, place: Place
    ) -> None:
        self._source, self._buffer, self._seed, self._lane, self._lanes = source, buffer, seed, lane, lanes
        self._of_each = lanes if len(source.shards) % lanes else 1  # of the rows of a shard, this lane takes one of so many
        self._told, self._closed = False, Event()
        self._read, self._reader = self._blocks(place), ThreadPoolExecutor(1)
        self._next = self._reader.submit(next, self._read)
        self.taken, self.first, self.place = first, first, place
        self._left: list[Source] = []
        while self.taken < taken:
            self.next()

    @property
    def state(self) -> list[int]:
        return [self.taken, self.first, *self.place]

    @property
    def begins(self) -> bool:
        """Whether the next row is the first of a block."""
        return not self._left

    def next(self) -> StreamedRow:
        if self.begins:
            before, (self.place, block) = self.place, self._next.result()
            if self.place.round > before.round and not self._lane and not self._told:
                self._told = True
                logger.warning("%s: it was read to its end, and begins anew in another order.", self._source.name)
            self._next = self._reader.submit(next, self._read)  # meanwhile, for a network is slow
            self.first = self.taken
            self._left = [block[number] for number in self._permutation(len(block), *self.place)[::-1]]
        self.taken += 1
        return StreamedRow(self._left.pop(), self._source.image_root)

    def close(self) -> None:
        """Reads no further: else the end of the program would wait for a block."""
        self._closed.set()
        self._reader.shutdown(wait=False, cancel_futures=True)

    def _blocks(self, place: Place) -> Iterator[tuple[Place, list[Source]]]:
        empty = 0
        for number in itertools.count(place.round):
            start = place if number == place.round else Place(number)
            rows = self._pass(start)
            while block := [*itertools.islice(rows, self._buffer)]:
                start = None
                yield block[0][0], [row for _, row in block]
            if self._closed.is_set():
                return
            empty = empty + 1 if start == Place(number) else 0
            if empty == _EMPTY_PASSES:
                raise BadRecordError(f"{self._source.name}: there are no records for process {self._lane} of {self._lanes}")

    def _pass(self, start: Place) -> Iterator[tuple[Place, Source]]:
        shards = self._source.shards
        if self._of_each > 1:
            order = self._permutation(len(shards), start.round)
        else:  # dealt out anew in each pass: shards may differ in size
            order = np.random.default_rng([self._seed, start.round]).permutation(len(shards)).tolist()[self._lane :: self._lanes]
        for at in range(start.shard, len(order)):
            number = order[at]
            for row in shards[number].rows(start.row if at == start.shard else 0):
                if self._closed.is_set():
                    return
                if (row.first + number) % self._of_each == (self._lane if self._of_each > 1 else 0):
                    yield Place(start.round, at, row.first), row

    def _permutation(self, count: int, *of: int) -> list[int]:
        return np.random.default_rng([self._seed, self._lane, *of]).permutation(count).tolist()


class Lane:
    """The rows of one process, of all sources by their weights, in an order that its arguments alone decide.

    Args:
        sources: of the stream.
        buffer: how many rows are shuffled at a time.
        seed: shuffles them.
        lane, lanes: which of how many.
        state: where it goes on, as ``state`` has told it; by default at the beginning.
    """

    def __init__(
        self, sources: Sequence[StreamSource], buffer: int, seed: int, lane: int, lanes: int, state: State | None = None
    ) -> None:
        state = state or {"number": 0, "sources": [[0, 0, 0, 0, 0]] * len(sources)}
        self._weights, self._number = [source.weight for source in sources], state["number"]
        self._blocks = [
            _Blocks(source, buffer, seed + of, lane, lanes, taken, first, Place(*place))
            for of, (source, (taken, first, *place)) in enumerate(zip(sources, state["sources"], strict=True))
        ]
        self._marks = [state]

    def take(self, number: int) -> StreamedRow:
        """The row of a number, which is larger than that of any row taken before.

        Raises:
            BadRecordError: a shard cannot be read, or there are no rows.
        """
        assert number >= self._number, "a stream does not go back"
        for _ in range(self._number, number):
            self._next()
        return self._next()

    def state(self, number: int) -> State:
        """What to begin with so that the row of a number can be taken, one that was taken before or the next; never asked of an earlier one."""
        self._marks = self._marks[max(at for at, mark in enumerate(self._marks) if mark["number"] <= number) :]
        return self._marks[0]

    def close(self) -> None:
        """Reads no further."""
        for blocks in self._blocks:
            blocks.close()

    def _next(self) -> StreamedRow:
        chosen = min(range(len(self._blocks)), key=lambda source: (self._blocks[source].taken + 1) / self._weights[source])
        blocks, begins = self._blocks[chosen], self._blocks[chosen].begins
        row = blocks.next()
        if begins:
            states = [one.state for one in self._blocks]
            states[chosen][0] -= 1
            self._marks.append({"number": self._number, "sources": states})
        self._number += 1
        return row
