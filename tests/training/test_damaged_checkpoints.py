"""A checkpoint is whole or it is not one: the newest whole one is gone on from, and what is wrong with newer ones is said."""

import errno
import os
import shutil

import pytest
from small_runs import changed, make_recipe

from evomoe.recipe.checkpoint import LIST, fault, writing
from evomoe.recipe.run_folder import RunFolder, StageFolder
from evomoe.training.dry_run import describe
from evomoe.training.run import run


def emptied(path):
    path.write_bytes(b"")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path):
    """One bit in the middle, under the file's old date."""
    content, times = bytearray(path.read_bytes()), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=times)


def removed(path):
    path.unlink()


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run that was killed in Stage II with checkpoints after steps 2 and 4, and the model that an undisturbed run makes."""
    from stop_at import StopAt
    from tiny import write_workspace

    from evomoe.training.trainer import EvoMoETrainer

    workspace = write_workspace(tmp_path_factory.mktemp("killed"))
    straight = run(make_recipe(workspace, "straight", steps=6, stages=(2,)), report=False)
    recipe = make_recipe(workspace, "run", steps=6, stages=(2,))
    with pytest.MonkeyPatch.context() as patch:
        original = EvoMoETrainer.__init__
        patch.setattr(EvoMoETrainer, "__init__", lambda self, *a, **k: (original(self, *a, **k), self.add_callback(StopAt(5)))[0])
        with pytest.raises(RuntimeError, match="killed"):
            run(recipe, report=False)
    return recipe, straight


FILES = [
    "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "evolution_state.safetensors",
    "config.json", LIST,
]  # fmt: skip


@pytest.mark.parametrize("damage", [emptied, cut, flipped, removed])
@pytest.mark.parametrize("name", FILES)
def test_any_damage_to_any_file_is_seen(killed, tmp_path, name, damage):
    checkpoint = tmp_path / "checkpoint-4"
    shutil.copytree(RunFolder(killed[0].output).stage(2).checkpoints / "checkpoint-4", checkpoint)
    assert fault(checkpoint) == ""
    damage(checkpoint / name)
    assert fault(checkpoint) if name == LIST else name in fault(checkpoint)


@pytest.mark.parametrize(
    ("name", "damage"), [("trainer_state.json", emptied), ("optimizer.pt", removed), ("model.safetensors", cut)]
)
def test_the_older_one_is_gone_on_from_and_what_is_wrong_is_said(killed, tmp_path, caplog, name, damage):
    recipe, straight = killed
    again = recipe.but(output=str(tmp_path / "again"))
    shutil.copytree(recipe.output, again.output)
    folder = RunFolder(again.output).stage(2)
    damage(folder.checkpoints / "checkpoint-4" / name)
    assert "goes on after step 2" in describe(again, resume=True)
    final = run(again, resume=True, report=False)
    assert f"checkpoint-4: {name} is " in caplog.text and "Going on from checkpoint-2" in caplog.text
    assert changed(straight, final) == set()
    assert not folder.checkpoints.exists()


def test_when_none_is_whole_that_is_one_sentence(killed, tmp_path):
    recipe = killed[0].but(output=str(tmp_path / "again"))
    shutil.copytree(killed[0].output, recipe.output)
    checkpoints = RunFolder(recipe.output).stage(2).checkpoints
    removed(checkpoints / "checkpoint-4" / "scheduler.pt")
    emptied(checkpoints / "checkpoint-2" / "rng_state.pth")
    with pytest.raises(
        ValueError,
        match=r"no checkpoint is whole \(checkpoint-4: scheduler.pt is missing; checkpoint-2: rng_state.pth is damaged\)",
    ):
        run(recipe, resume=True, report=False)
    shutil.rmtree(checkpoints)
    assert changed(killed[1], run(recipe, resume=True, report=False)) == set()


@pytest.mark.parametrize(("before", "told"), [(False, ", and there is none before it."), (True, "; the one before it is whole.")])
def test_a_checkpoint_for_which_there_is_no_room_says_what_is_left(tmp_path, before, told):
    if before:
        (tmp_path / "checkpoint-2").mkdir()
    with (
        pytest.raises(OSError, match=f"checkpoint-4: No space .*This checkpoint was not written{told} Make room"),
        writing(tmp_path, 4),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_checkpoint_bears_its_name_when_all_of_it_is_there(workspace, monkeypatch):
    """Whatever is written last: until then the folder has another name."""
    from transformers import Trainer

    seen = []

    def named() -> list[str]:
        folder = StageFolder(workspace / "run" / "stage2_evolution")
        return sorted(path.name for path in folder.checkpoints.iterdir() if path != folder.start)

    save = Trainer._save_checkpoint

    def watched(self, *args):
        seen.append(named())
        save(self, *args)
        seen.append(named())

    monkeypatch.setattr(Trainer, "_save_checkpoint", watched)
    run(make_recipe(workspace, stages=(2,), steps=4), report=False)
    assert seen == [["partial"]] * 2 + [["checkpoint-2", "partial"]] * 2
