"""Tasks in one process share data and questions."""

import pytest
from tiny.study import some

from evomoe.paper.study import shared_inputs
from evomoe.paper.study.study import run


def test_tasks_in_one_process_share_data_and_questions(base, world, tmp_path, monkeypatch):
    shared_inputs._training_data.cache_clear()
    shared_inputs.benchmarks.cache_clear()
    loads, prepares = [], []
    load_data, prepare = shared_inputs.load_data, shared_inputs.prepare
    monkeypatch.setattr(shared_inputs, "load_data", lambda *args, **more: loads.append(args) or load_data(*args, **more))
    monkeypatch.setattr(shared_inputs, "prepare", lambda *args, **more: prepares.append(args) or prepare(*args, **more))
    monkeypatch.setattr("evomoe.training.run.load_data", lambda *args: pytest.fail("a stage read its data itself"))
    run([cell.scoring for cell in some(["evomoe", "dense"], base, world)], tmp_path / "shared")
    assert len(loads) == 1 and len(prepares) == 7
    other = some(["dense"], base, world)[0].recipe.but(data=str(world / "train" / "stage1.json"))
    assert len(shared_inputs.training_data(other, base)) == 8 and len(loads) == 2
