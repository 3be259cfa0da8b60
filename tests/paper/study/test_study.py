"""A study: rows share what they have in common, what is finished stays, several tasks run at once."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny.study import TINY, some

from evomoe.analysis.intervention import Intervention
from evomoe.paper.study import measure
from evomoe.paper.study.study import all_tasks, cells, experts_alone, run, trainings
from evomoe.paper.study.task import Scoring, Training
from evomoe.paper.tables import TABLES
from evomoe.recipe.recipe import Recipe

LONGEST = measure.LONGEST


def test_rows_share_the_stages_that_are_alike(base, world, tmp_path):
    evomoe, linear, dense = (trainings(cell.recipe) for cell in some(["evomoe", "evolution", "dense"], base, world))
    assert evomoe[0].key == linear[0].key and evomoe[1].key != linear[1].key and len(dense) == 1
    assert len(all_tasks([*evomoe, *linear, *dense])) == 4
    assert [task.name for task in all_tasks([evomoe[1]])] == [evomoe[0].name, evomoe[1].name]
    other_seed = trainings(some(["evomoe"], base, world, (1,))[0].recipe)
    assert other_seed[0].key != evomoe[0].key
    changed = trainings(some(["evomoe"], base, world)[0].recipe.but(stop_fraction=0.5))
    assert changed[0].key != evomoe[0].key
    another_loss = trainings(some(["evomoe"], base, world)[0].recipe.but(aux_losses={}))
    assert another_loss[0].key == evomoe[0].key and another_loss[1].key != evomoe[1].key
    ffn = trainings(some(["dense-ffn"], base, world)[0].recipe)
    everywhere = trainings(some(["dense-ffn"], base, world)[0].recipe.but(moe_layers="all"))
    assert ffn[0].key != everywhere[0].key  # the FFNs of which layers train
    far = shutil.copytree(base, tmp_path / base.name)
    elsewhere = Training(evomoe[0].recipe.but(output="elsewhere", workers=3), far)
    assert elsewhere.key == evomoe[0].key
    weights = load_file(far / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, far / "model.safetensors", {"format": "pt"})
    assert elsewhere.key != evomoe[0].key  # another model by the same name
    assert Training(evomoe[0].recipe, Path("far") / base.name).key  # one that is not there yet


def test_the_paper_s_protocol_puts_stage_3_on_top(base, world):
    def steps(name: str) -> list[int]:
        recipe = some([name], base, world)[0].recipe
        return [recipe.stage(stage).steps for stage in recipe.stages]

    II, III = TINY.evolution_steps, TINY.routing_steps
    assert [steps(name) for name in ("evomoe", "dense", "moe-tuning")] == [[II, III], [II + III], [II + III]]
    assert [steps(name) for name in ("evomoe-paper", "dense-longer")] == [[II + III, III], [II + 2 * III]]


def test_a_stage_of_its_own_takes_no_records_that_the_stage_before_took(base, world, tmp_path):
    (cell,) = some(["evomoe"], base, world)
    stage2, stage3 = trainings(cell.recipe)
    run([stage3], tmp_path)
    seen = [Recipe.load(task.folder(tmp_path)).stage(task.stage).seen_records for task in (stage2, stage3)]
    assert seen == [0, TINY.evolution_steps * TINY.batch_size]


def test_a_study_trains_scores_and_goes_on(base, world, tmp_path, monkeypatch):
    study = tmp_path / "study"
    (cell,) = some(["evomoe"], base, world)
    alone = experts_alone(cell, limit=4)
    assert [scoring.intervention for scoring in alone] == [Intervention(expert=n) for n in range(4)] and {
        scoring.split for scoring in alone
    } == {"validation"}
    run([alone[0], alone[3], cell.scoring], study)
    found = json.loads(cell.scoring.file(study).read_text())
    assert set(found["scores"]) == {*found["answers"]} and len(found["scores"]) == 7 and "mini-textvqa-ocr" in found["scores"]
    mean = (sum(found["scores"].values()) - found["scores"]["mini-mme"] * 19 / 20) / 7
    assert found["average"] == pytest.approx(mean)
    model = json.loads((cell.scoring.training.model(study) / "config.json").read_text())
    assert model["evomoe"]["router"] == "dtr" and model["evomoe"]["router_options"] == {"hypernet_width": 16, "rank": 4}

    def never(self, study):
        raise AssertionError(self.name)

    monkeypatch.setattr(Training, "run", never)
    monkeypatch.setattr(Scoring, "run", never)
    run([alone[0], alone[3], cell.scoring], study)
    with pytest.raises(AssertionError, match="scores-"):
        run([alone[1]], study)


def test_readings_that_leave_copies_of_expert_1_go_through(base, world, tmp_path):
    table = TABLES["readings"]
    read = {row.name: (row.recipe.evolution.rule, row.recipe.evolution.stop_fraction) for row in table.rows}
    assert read == {
        "scaled_update": ("scaled_update", 1.0),
        "scaled_update-half": ("scaled_update", 0.5),
        "ema": ("ema", 1.0),
        "ema-half": ("ema", 0.5),
        "lookback": ("lookback", 1.0),
        "literal": ("literal", 1.0),
    }
    still = replace(TINY, learning_rates=TINY.learning_rates | {"ffn": 1e-30})  # then all evolved experts are copies
    found = cells(table.chosen(["lookback", "ema"]), [0], still, {"": base}, {0: world}, "test")
    run([cell.scoring.training for cell in found], tmp_path)
    (evomoe,) = cells(table.chosen(["scaled_update"]), [0], still, {"": base}, {0: world}, "test")
    with pytest.raises(ValueError, match="`allow_collapsed_experts=True`"):
        run([evomoe.scoring.training], tmp_path)


@pytest.mark.slow
def test_tasks_side_by_side(base, world, tmp_path, monkeypatch):
    """In processes of their own: the same scores, a log each, the caller's environment as before."""
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    wanted = [cell.scoring for cell in some(["dense", "dense-ffn"], base, world)]
    run(wanted, tmp_path / "two", jobs=2)
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert sorted(path.stem for path in (tmp_path / "two").glob("*.log")) == sorted(task.name for task in all_tasks(wanted))
    monkeypatch.setattr(measure, "LONGEST", LONGEST)  # as in the other processes
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))  # as many as each of two processes has
    run(wanted, tmp_path / "one")
    torch.set_num_threads(threads)
    for scoring in wanted:
        two, one = (json.loads(scoring.file(tmp_path / folder).read_text()) for folder in ("two", "one"))
        assert len(two["scores"]) == 7 and (two["scores"], two["answers"]) == (one["scores"], one["answers"])
    broken = replace(wanted[0].training, source=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=rf"{broken.name} failed: .*nowhere: there is no such folder.*log: "):
        run([broken], tmp_path / "two", jobs=2)
    assert "Traceback" in (tmp_path / "two" / f"{broken.name}.log").read_text()


def test_a_failed_task_is_named(base, world, tmp_path):
    (cell,) = some(["dense"], base, world)
    broken = replace(cell.scoring.training, source=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="nowhere: there is no such folder"):
        run([broken], tmp_path / "study")


def test_processes_end_with_the_command_that_started_them(tmp_path):
    script = tmp_path / "command.py"
    script.write_text("""
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from evomoe.paper.study.study import _end_with_parent

if __name__ == "__main__":
    with ProcessPoolExecutor(1, get_context("spawn"), _end_with_parent) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600).result()
""")
    command = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None
    worker = int(command.stdout.readline())
    command.kill()
    command.wait()
    until = time.monotonic() + 60
    while _runs(worker) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _runs(worker)


def _runs(process: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")
