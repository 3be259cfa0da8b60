"""In which order a stage takes the rows of a stream, and where it goes on: after a stop, and after the stages before it.

The lanes of the stream are as many as there were processes when the run began, and a step takes as many rows of each. So the records of
a step are the same when a run goes on with other processes, which then share a lane, or have several.
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
        steps: how many the stage takes.
        per_step: rows of a step, of all processes.
        batch_size: rows of a process's micro-batch.
        seen: how many rows were taken before the stage.
    """

    def __init__(
        self,
        sources: Sequence[StreamSource],
        buffer: int,
        seed: int,
        steps: int,
        per_step: int,
        batch_size: int,
        seen: int = 0,
    ) -> None:
        self._sources, self._buffer, self._seed, self._seen = sources, buffer, seed, seen
        self._steps, self._per_step, self._batch_size = steps, per_step, batch_size
        self._lanes, self._start = process_count(), 0
        self._states: dict[int, Any] = {}
        self._open: dict[int, Lane] = {}
        self._named: deque[tuple[int, str]] = deque(maxlen=_NAMED)

    def __len__(self) -> int:
        return self._steps * self._per_step

    def __iter__(self) -> Iterator[StreamedRow | None]:
        self.close()
        self._open.clear()
        for step in range(self._steps):
            for place in range(self._per_step):
                own = place // self._batch_size % process_count() == process_number()  # as accelerate deals batches out
                yield self._row(step, place) if own and step >= self._start else None

    def follow(self, folder: Path) -> None:
        """Goes on where another stage has ended, as its folder tells; without it, what was seen is read again."""
        if known := _read(folder):
            self._take_over(known, folder)

    def go_on(self, folder: Path, step: int) -> None:
        """Goes on after so many steps, as the folder of a checkpoint tells.

        Raises:
            ValueError: the stream has other shards now, or the folder tells nothing of a stream.
        """
        known = _read(folder)
        if not known:
            raise ValueError(f"{folder}: it does not tell where the stream stood. Begin the stage anew: remove its checkpoints.")
        self._take_over(known, folder)
        self._start = step

    def save(self, folder: Path, step: int) -> None:
        """Writes where the lanes of this process stand after so many steps."""
        states = {lane: one.state(self._first(step)) for lane, one in self._open.items()}
        told = {"lanes": self._lanes, "shards": self._shards, "states": self._states | states}
        write_text(folder / f"stream_{process_number()}.json", json.dumps(told) + "\n")

    def close(self) -> None:
        """Reads no further."""
        for lane in self._open.values():
            lane.close()

    def names(self, step: int) -> list[str]:
        """What the rows of a step are called, of those that this process has taken."""
        return [name for of_step, name in self._named if of_step == step]

    @property
    def _shards(self) -> list[int]:
        return [len(source.shards) for source in self._sources]

    def _take_over(self, known: dict[str, Any], folder: Path) -> None:
        if known["shards"] != self._shards:
            raise ValueError(
                f"The stream had {known['shards']} shards when {folder} was written, and has {self._shards} now. Put back what it was."
            )
        if self._per_step % known["lanes"]:
            raise ValueError(
                f"The run began with {known['lanes']} processes, among which the {self._per_step} records of a step cannot be shared "
                "out. Change `batch_size` or `accumulation` of the stage."
            )
        self._lanes, self._states = known["lanes"], known["states"]

    def _first(self, step: int) -> int:
        """The first row of a step in each lane."""
        return self._seen // self._lanes + step * (self._per_step // self._lanes)

    def _row(self, step: int, place: int) -> StreamedRow:
        micro_batch, of_batch = divmod(place, self._batch_size)
        of_process = micro_batch // process_count() * self._batch_size + of_batch
        of_step = process_number() * (self._per_step // process_count()) + of_process
        lane, of_lane = divmod(of_step, self._per_step // self._lanes)
        number = self._first(step) + of_lane
        if lane not in self._open:
            state = self._states.get(lane)
            known = state if state and state["number"] <= number else None
            self._open[lane] = Lane(self._sources, self._buffer, self._seed, lane, self._lanes, known)
        row = self._open[lane].take(number)
        self._named.append((step, row.where))
        return row


def _read(folder: Path) -> dict[str, Any]:
    """What the processes have written of a stream, as one; nothing if they have not."""
    told = [read_json(path) for path in sorted(folder.glob("stream_*.json"))]
    if not told:
        return {}
    return told[0] | {"states": {int(lane): state for one in told for lane, state in one["states"].items()}}
