"""In which order a stage takes the rows of a stream, and where it goes on: after a stop, and after the stages before it.

Positions are dealt out as accelerate deals out batches: process r of N takes each N-th batch. What a lane of the stream is, and how
wide a batch, is what it was when the run began. So a run goes on with other processes, though its lanes are as many as before.
"""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Sampler

from evomoe.data.stream import Lane, StreamedRow, StreamSource
from evomoe.support.files import write_text
from evomoe.support.parse_json import read_json
from evomoe.support.processes import process_count, process_number

_NAMED = 10_000
"""Rows whose names are kept, for messages about a step."""


class StreamOrder(Sampler[StreamedRow | None]):
    """The rows that this process takes; None in the places of those that others take, or that were taken before.

    Args:
        sources: of the stream.
        buffer: how many rows are shuffled at a time.
        seed: shuffles them.
        count: how many the stage takes, of all processes.
        batch_size: of a process.
        seen: how many were taken before the stage.
    """

    def __init__(
        self, sources: Sequence[StreamSource], buffer: int, seed: int, count: int, batch_size: int, seen: int = 0
    ) -> None:
        self._sources, self._buffer, self._seed, self._seen = sources, buffer, seed, seen
        self._count, self._batch_size = count, batch_size
        self._lanes, self._width = process_count(), batch_size
        self._states: dict[int, Any] = {}
        self._open: dict[int, Lane] = {}
        self._start = 0
        self._named: deque[tuple[int, str]] = deque(maxlen=_NAMED)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[StreamedRow | None]:
        self._open.clear()
        for position in range(self._count):
            own = position // self._batch_size % process_count() == process_number()
            yield self._row(position) if own and position >= self._start else None

    def follow(self, folder: Path) -> None:
        """Goes on where another stage has ended, as its folder tells; without it, what was seen is read again."""
        if known := _read(folder):
            self._lanes, self._states = known["lanes"], known["states"]

    def go_on(self, folder: Path, position: int) -> None:
        """Goes on at a position, as the folder of a checkpoint tells.

        Raises:
            ValueError: the stream has other shards now, or the folder tells nothing of a stream.
        """
        known = _read(folder)
        if not known:
            raise ValueError(f"{folder}: it does not tell where the stream stood. Begin the stage anew: remove its checkpoints.")
        if known["shards"] != self._shards:
            raise ValueError(
                f"The stream had {known['shards']} shards when {folder} was written, and has {self._shards} now. Put back what it was."
            )
        self._lanes, self._width, self._states, self._start = known["lanes"], known["width"], known["states"], position

    def save(self, folder: Path, position: int) -> None:
        """Writes where the lanes of this process stand at a position, the first of a step."""
        states = {lane: one.state(self._number(position)) for lane, one in self._open.items()}
        told = {"lanes": self._lanes, "width": self._width, "shards": self._shards, "states": states}
        write_text(folder / f"stream_{process_number()}.json", json.dumps(told) + "\n")

    def names(self, start: int, end: int) -> list[str]:
        """What the rows of some positions are called, of those that this process has taken."""
        return [name for position, name in self._named if start <= position < end]

    @property
    def _shards(self) -> list[int]:
        return [len(source.shards) for source in self._sources]

    def _number(self, position: int) -> int:
        """Which row of its lane stands at a position."""
        batch, place = divmod(position, self._width)
        return self._seen // self._lanes + batch // self._lanes * self._width + place

    def _row(self, position: int) -> StreamedRow:
        number, lane = self._number(position), position // self._width % self._lanes
        if lane not in self._open:
            state = self._states.get(lane)
            known = state if state and state["number"] <= number else None
            self._open[lane] = Lane(self._sources, self._buffer, self._seed, lane, self._lanes, known)
        row = self._open[lane].take(number)
        self._named.append((position, row.where))
        return row


def _read(folder: Path) -> dict[str, Any]:
    """What the processes have written of a stream, as one; nothing if they have not."""
    told = [read_json(path) for path in sorted(folder.glob("stream_*.json"))]
    if not told:
        return {}
    return told[0] | {"states": {int(lane): state for one in told for lane, state in one["states"].items()}}
