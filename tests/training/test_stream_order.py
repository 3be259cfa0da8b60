"""Which process takes which rows of a stream, and that a step has the same ones when a run goes on with other processes."""

import json
from pathlib import Path

import pytest

from evomoe.data.shards import open_shards
from evomoe.data.stream import StreamSource
from evomoe.training import stream_order
from evomoe.training.stream_order import StreamOrder

STEPS = 6


@pytest.fixture
def source(tmp_path) -> StreamSource:
    for shard in range(4):
        (tmp_path / f"{shard}.jsonl").write_text("".join(json.dumps({"id": 30 * shard + row}) + "\n" for row in range(30)))
    return StreamSource("data", open_shards(str(tmp_path)))


@pytest.fixture
def steps_of(monkeypatch, source):
    """The rows of each step and process, of a run with so many processes, each with micro-batches of so many."""

    def taken(
        processes: int, batch: int, accumulation: int, folder: Path, begin: int = 0, end: int = STEPS
    ) -> list[list[list[int]]]:
        monkeypatch.setattr(stream_order, "process_count", lambda: processes)
        per_step, orders, found = (
            processes * batch * accumulation,
            [],
            [[[] for _ in range(processes)] for _ in range(begin, end)],
        )
        for process in range(processes):
            monkeypatch.setattr(stream_order, "process_number", lambda process=process: process)
            order = StreamOrder([source], 7, 0, STEPS, per_step, batch)
            if begin:
                order.go_on(folder, begin)
            rows = [*order]
            assert all(row is None for row in rows[: begin * per_step])
            for place, row in enumerate(rows[begin * per_step : end * per_step]):
                assert (row is None) == (place // batch % processes != process), "accelerate gives it to another process"
                if row is not None:
                    found[place // per_step][process].append(row.source.rows[0]["id"])
            orders.append((process, order))
        for process, order in orders:
            monkeypatch.setattr(stream_order, "process_number", lambda process=process: process)
            order.save(folder, end)
        return found

    return taken


def rows(steps: list[list[list[int]]]) -> list[list[int]]:
    return [sorted(row for process in step for row in process) for step in steps]


@pytest.mark.parametrize("began", [(1, 8, 1), (2, 4, 1), (2, 1, 4), (4, 2, 1)])
@pytest.mark.parametrize("goes_on", [(1, 8, 1), (1, 2, 4), (2, 4, 1), (2, 2, 2), (4, 1, 2), (8, 1, 1)])
def test_a_step_has_the_same_rows_with_other_processes(steps_of, tmp_path, began, goes_on):
    whole = steps_of(*began, tmp_path)
    assert len({row for step in whole for process in step for row in process}) == 48, "a row is taken twice in a pass"
    steps_of(*began, tmp_path, end=2)
    assert rows(steps_of(*goes_on, tmp_path, begin=2)) == rows(whole[2:])


def test_each_process_reads_its_own_shards(steps_of, tmp_path):
    whole = steps_of(4, 2, 1, tmp_path)
    assert [len({row // 30 for step in whole for row in step[process]}) for process in range(4)] == [1] * 4


def test_a_step_that_cannot_be_shared_out_among_the_lanes_is_refused(steps_of, tmp_path):
    steps_of(4, 2, 1, tmp_path, end=2)
    with pytest.raises(ValueError, match=r"began with 4 processes, among which the 6 records of a step cannot be shared out"):
        steps_of(1, 6, 1, tmp_path, begin=2)
    for file in tmp_path.glob("stream_*.json"):
        file.unlink()
    with pytest.raises(ValueError, match=r"it does not tell where the stream stood"):
        steps_of(1, 8, 1, tmp_path, begin=2)
