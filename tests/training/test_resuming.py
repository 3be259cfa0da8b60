"""What a run may start on, and what going on means: after a kill, after Ctrl-C, in another run's folder."""

import json
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file
from small_runs import changed, make_recipe, weights

from evomoe.recipe.options import EvolutionOptions, MoEOptions
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.run_folder import RunFolder
from evomoe.support.errors import OptionError
from evomoe.training.run import run
from evomoe.training.trainer import EvoMoETrainer


@pytest.mark.parametrize("rule", ["scaled_update", "ema"])
def test_a_killed_and_resumed_run_equals_one_that_was_never_killed(workspace, kill_at, rule):
    straight = make_recipe(workspace, "straight", evolution=EvolutionOptions(rule, stop_fraction=0.75))
    killed = straight.but(output=str(workspace / "killed"))
    run(straight)
    for stage in ("evolution", "routing"):
        kill_at[stage] = 3
        with pytest.raises(RuntimeError, match="killed"):
            run(killed, resume=stage == "routing")
        del kill_at[stage]
    run(killed, resume=True)
    for stage in (2, 3):
        a, b = (RunFolder(recipe.output).stage(stage) for recipe in (straight, killed))
        assert changed(a.model, b.model) == set()
    evolved = [load_file(RunFolder(r.output).stage(2).path / "evolved_experts.safetensors") for r in (straight, killed)]
    assert all(torch.equal(evolved[0][name], evolved[1][name]) for name in evolved[0])
    steps = [(m["stage"], m["step"]) for m in map(json.loads, (workspace / "killed" / "metrics.jsonl").read_text().splitlines())]
    assert len([s for s in steps if s == ("evolution", 3)]) == 1


def test_a_half_written_checkpoint_is_not_resumed_from(workspace, kill_at):
    recipe = make_recipe(workspace)
    kill_at["evolution"] = 4
    with pytest.raises(RuntimeError, match="killed"):
        run(recipe)
    folder = RunFolder(recipe.output).stage(2)
    assert folder.last_checkpoint().name == "checkpoint-2"
    (folder.checkpoints / "checkpoint-3").mkdir()
    assert folder.last_checkpoint().name == "checkpoint-2"


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_or_a_cluster_s_end_saves_a_checkpoint_and_the_run_goes_on_from_there(workspace, monkeypatch, number, times):
    """Sent twice at once, as torchrun does, it is one."""
    recipe = make_recipe(workspace, stages=(2,))
    original, handler = EvoMoETrainer.training_step, signal.getsignal(number)

    def press_ctrl_c(self, *args, **kwargs):
        if self.state.global_step == 2 and not self.interrupt.asked:
            for _ in range(times):
                signal.raise_signal(number)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(EvoMoETrainer, "training_step", press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        run(recipe)
    folder = RunFolder(recipe.output).stage(2)
    assert folder.last_checkpoint().name == "checkpoint-3" and not folder.model.exists()
    monkeypatch.undo()
    assert run(recipe, resume=True) == folder.model
    assert signal.getsignal(number) is handler


def test_a_second_ctrl_c_ends_it_at_once(workspace, monkeypatch):
    recipe = make_recipe(workspace, stages=(2,))
    original = EvoMoETrainer.training_step

    def press_twice(self, *args, **kwargs):
        if self.state.global_step == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(EvoMoETrainer, "training_step", press_twice)
    monkeypatch.setattr("evomoe.training.callbacks.AT_ONCE", -1.0)
    with pytest.raises(KeyboardInterrupt):
        run(recipe)
    assert RunFolder(recipe.output).stage(2).last_checkpoint().name == "checkpoint-2"


def test_a_run_that_goes_on_if_it_has_begun_is_the_same_recipe_s(workspace):
    recipe = make_recipe(workspace, stages=(2,), steps=2)
    folder = RunFolder(recipe.output)
    folder.path.mkdir()
    (folder.path / "notes.txt").write_text("mine")
    done = run(recipe, resume="if begun")
    assert run(recipe, resume="if begun") == done and (folder.path / "notes.txt").is_file()
    written = folder.recipe.read_text()
    with pytest.raises(OptionError, match="^output: .* holds a run of another recipe"):
        run(recipe.but(seed=5), resume="if begun")
    assert folder.recipe.read_text() == written
    folder.recipe.unlink()
    with pytest.raises(OptionError, match="^output: .* holds no recipe.json"):
        run(recipe, resume="if begun")
    assert done.is_dir()


@pytest.mark.parametrize("resume", ["if_begun", "no", None])
def test_going_on_is_one_of_three_words(workspace, resume):
    with pytest.raises(OptionError, match="^resume: .* must be True, False or 'if begun'"):
        run(make_recipe(workspace), resume=resume)


def test_an_existing_output_folder_is_refused_unless_the_same_run_is_resumed(workspace):
    recipe = make_recipe(workspace, stages=(2,), steps=2)
    run(recipe)
    with pytest.raises(ValueError, match="^output: .* holds a run already. Add `resume=True`"):
        run(recipe)
    with pytest.raises(ValueError, match="another recipe .*seed: 0 -> 1"):
        run(recipe.but(seed=1), resume=True)
    (workspace / "other").mkdir()
    (workspace / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="no recipe.json"):
        run(recipe.but(output=str(workspace / "other")), resume=True)
    assert (workspace / "other" / "notes.txt").read_text() == "mine"


def test_a_run_that_got_to_no_checkpoint_is_started_anew_by_any_recipe(workspace, kill_at):
    recipe, other = make_recipe(workspace, stages=(3,), expert_init="noise"), make_recipe(workspace, stages=(2,))
    kill_at["routing"], kill_at["evolution"] = 2, 3  # checkpoints are written after every second step
    for _ in range(2):
        with pytest.raises(RuntimeError, match="killed"):
            run(recipe)
    (workspace / "run" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="of another recipe .*leave out `resume` to start anew"):
        run(other, resume=True)
    with pytest.raises(RuntimeError, match="killed"):
        run(other)
    metrics = [json.loads(line) for line in (workspace / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(m["stage"], m["step"]) for m in metrics] == [("evolution", 1), ("evolution", 2)]
    assert not RunFolder(recipe.output).stage(3).path.exists() and Recipe.load(workspace / "run" / "recipe.json") == other
    with pytest.raises(ValueError, match="^output: .* holds a run already. Add `resume=True`"):  # now there is a checkpoint
        run(recipe)
    assert (workspace / "run" / "mine.txt").read_text() == "mine"


def test_a_run_whose_models_were_removed_is_still_no_place_for_another(workspace):
    recipe = make_recipe(workspace, stages=(2,), steps=2)
    final = run(recipe)
    shutil.rmtree(final.parent)
    with pytest.raises(ValueError, match="holds a run already"):
        run(recipe)
    assert (workspace / "run" / "metrics.jsonl").is_file()


def test_a_bias_moves_with_every_step_also_after_a_kill(workspace, kill_at):
    options = MoEOptions(8, 4, "anyexperts", {"bias_rate": 0.1, "importance_width": 4})
    recipe = make_recipe(workspace, stages=(3,), steps=4, moe=options, expert_init="noise", init_options={"std": 0.1})
    biases = [tensor for name, tensor in weights(run(recipe)).items() if name.endswith("bias.value_N")]
    assert len(biases) == 2 and all(bias.any() for bias in biases)
    killed = recipe.but(output=str(workspace / "killed"))
    kill_at["routing"] = 3
    with pytest.raises(RuntimeError, match="killed"):
        run(killed)
    del kill_at["routing"]
    again = [tensor for name, tensor in weights(run(killed, resume=True)).items() if name.endswith("bias.value_N")]
    assert all(torch.equal(one, other) for one, other in zip(biases, again, strict=True))


def test_what_a_kill_left_of_checkpoints_is_removed_when_the_run_goes_on(workspace, monkeypatch):
    """A stage whose model had its name already, killed before its checkpoints were removed."""
    recipe = make_recipe(workspace, stages=(2, 3), steps=2)
    with monkeypatch.context() as patch:
        patch.setattr("evomoe.training.stage.remove", lambda path: None)
        run(recipe, report=False)
    folder = RunFolder(recipe.output)
    assert all(folder.stage(stage).checkpoints.is_dir() for stage in (2, 3))
    run(recipe, resume=True, report=False)
    assert not any(folder.stage(stage).checkpoints.exists() for stage in (2, 3))
