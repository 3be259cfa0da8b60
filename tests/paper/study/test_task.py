"""One piece of a study: an unfinished one is gone on with, and one that another process is at is waited for."""

import hashlib
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock
from tiny.study import some

import evomoe
from evomoe.analysis.intervention import Intervention
from evomoe.paper.study import provenance
from evomoe.paper.study.study import trainings
from evomoe.paper.study.task import Scoring, recipe_values, run_once
from evomoe.recipe.options import StageOptions
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.run_folder import RunFolder


def test_a_stage_that_another_row_left_unfinished_is_gone_on_with(base, world, tmp_path):
    """Rows that share Stage II differ in the options of Stage III, which are written beside it."""
    evomoe, linear = (trainings(cell.recipe)[0] for cell in some(["evomoe", "evolution"], base, world))
    assert evomoe.name == linear.name and evomoe.recipe != linear.recipe

    def stop(step: int):
        def step_end(self, args, state, control, **more):
            if state.global_step == step:
                raise KeyboardInterrupt

        return step_end

    save = {"trainer": {"save_steps": 1, "train_sampling_strategy": "random"}}
    evomoe, linear = (replace(one, recipe=one.recipe.but(**save)) for one in (evomoe, linear))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evomoe.training.callbacks.ProgressBar.on_step_end", stop(2))
        with pytest.raises(KeyboardInterrupt):
            evomoe.run(tmp_path)
    checkpoint = RunFolder(evomoe.folder(tmp_path)).stage(2).last_checkpoint()
    assert checkpoint is not None and not evomoe.done(tmp_path)
    steps: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "evomoe.training.callbacks.ProgressBar.on_step_end",
            lambda self, args, state, *more, **options: steps.append(state.global_step),
        )
        linear.run(tmp_path)
    assert evomoe.done(tmp_path) and steps and min(steps) == int(checkpoint.name.rpartition("-")[2]) + 1
    (where,) = linear.provenance(tmp_path)
    assert where["threads"] == str(torch.get_num_threads())
    broken = trainings(some(["dense"], base, world)[0].recipe)[0]  # a folder that another version began
    broken.folder(tmp_path).mkdir()
    (broken.folder(tmp_path) / "recipe.json").write_text("{}")
    broken.run(tmp_path)
    assert broken.done(tmp_path)


def test_a_task_that_another_process_is_at_is_waited_for(base, world, tmp_path, monkeypatch, capsys):
    scoring, ran = some(["dense"], base, world)[0].scoring, threading.Event()
    other = FileLock(tmp_path / ".locks" / scoring.name)
    (tmp_path / ".locks").mkdir()
    monkeypatch.setattr(Scoring, "run", lambda self, study: ran.set())
    other.acquire()
    waiting = threading.Thread(target=run_once, args=(scoring, tmp_path))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive() and not ran.is_set()
    assert f"{scoring.name}: another command is at it" in capsys.readouterr().err
    scoring.file(tmp_path).write_text("{}")  # the other one has finished
    other.release()
    waiting.join(20)
    assert not waiting.is_alive() and not ran.is_set()
    scoring.file(tmp_path).unlink()
    run_once(scoring, tmp_path)
    assert ran.is_set()


def test_a_stage_that_began_with_its_files_elsewhere_goes_on(base, world, tmp_path):
    (cell,) = some(["dense"], base, world)
    training = cell.scoring.training
    begun = training.recipe.but(model="/elsewhere/base", output=str(training.folder(tmp_path)))
    training.folder(tmp_path).mkdir(parents=True)
    begun.save(training.folder(tmp_path) / "recipe.json")
    training.run(tmp_path)
    assert training.done(tmp_path)
    moved = tmp_path / "moved" / world.name
    shutil.copytree(world, moved)
    (elsewhere,) = some(["dense"], base, moved)
    assert elsewhere.scoring.training.done(tmp_path)


def test_a_scoring_s_name_is_a_hash_of_what_is_asked_and_of_whom():
    """As it always was: what is finished in a study's folder is found again."""

    def name(*values) -> str:
        return "scores-" + hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]

    def scoring(**changes) -> Scoring:
        return Scoring(Path("nowhere/base"), Path("data/mini-world"), "test", 5, Intervention(**changes))

    asked = ("base", "mini-world", "test", 5)
    assert scoring().name == name(*asked, None, None)
    assert scoring(expert=1).name == name(*asked, 1, None)
    assert scoring(shuffle=2).name == name(*asked, None, 2)
    assert scoring(experts_per_token=4.8).name == name(*asked, None, None, 4.8, None)
    assert scoring(experts_per_token=8.0, shuffle_importance=1).name == name(*asked, None, None, 8.0, 1)


def test_options_that_came_later_are_no_part_of_what_a_training_is_unless_they_say_something():
    recipe = Recipe("model", "data.json", "out")
    assert not {"streaming", "video_frames"} & recipe_values(recipe).keys()
    steps = {f"stage{stage}": StageOptions(steps=1) for stage in recipe.stages}
    assert {"streaming", "video_frames"} <= recipe_values(recipe.but(streaming=5, video_frames=2, **steps)).keys()


def test_the_commit_is_that_of_the_whole_package(monkeypatch):
    asked = []

    def run(command, **options):
        asked.append(command)
        return SimpleNamespace(stdout=" M cli.py" if "status" in command else "abc1234\n")

    monkeypatch.setattr(provenance.subprocess, "run", run)
    assert provenance.provenance()["commit"] == "abc1234+"
    assert all(command[:3] == ["git", "-C", str(Path(evomoe.__file__).parent)] for command in asked) and len(asked) == 2
