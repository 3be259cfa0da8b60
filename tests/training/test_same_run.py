"""A run that goes on is the run that began: the same weights, data, pictures and processes, in a folder that nobody else is at."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from small_runs import changed, make_recipe
from stop_at import StopAt
from tiny import write_workspace

from evomoe.recipe.run_folder import RunFolder
from evomoe.support.errors import OptionError
from evomoe.training.dry_run import describe
from evomoe.training.run import run
from evomoe.training.trainer import EvoMoETrainer


@pytest.fixture(scope="module")
def began(tmp_path_factory):
    """A workspace with a run that was killed in Stage II after its first checkpoint."""
    workspace = write_workspace(tmp_path_factory.mktemp("began"))
    with pytest.MonkeyPatch.context() as patch:
        original = EvoMoETrainer.__init__
        patch.setattr(EvoMoETrainer, "__init__", lambda self, *a, **k: (original(self, *a, **k), self.add_callback(StopAt(3)))[0])
        patch.chdir(workspace)
        with pytest.raises(RuntimeError, match="killed"):
            run(_recipe(), report=False)
    return workspace


def _recipe():
    return make_recipe(Path("."), stages=(2,))


@pytest.fixture
def there(began, tmp_path, monkeypatch):
    """A copy of it, with all its dates, and the current folder there."""
    shutil.copytree(began, tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    return tmp_path / "there"


def _rewrite(path: Path, change) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def reversed_data(there):
    _rewrite(there / "data.json", lambda records: records[::-1])


def halved_data(there):
    _rewrite(there / "data.json", lambda records: records[:12])


def one_word(there):
    _rewrite(there / "data.json", lambda records: json.loads(json.dumps(records).replace('"red"', '"blue"', 1)))


def one_pixel(there):
    picture = Image.open(there / "images" / "0.png")
    picture.putpixel((3, 3), (1, 2, 3))
    picture.save(there / "images" / "0.png")


def other_weights(there):
    tensors = load_file(there / "model" / "model.safetensors")
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name] + 1}, there / "model" / "model.safetensors", {"format": "pt"})


def other_template(there):
    template = there / "model" / "chat_template.jinja"
    template.write_text(template.read_text().replace("</s>", "</s>\n"))


def other_further_template(there):
    (there / "model" / "additional_chat_templates").mkdir()
    (there / "model" / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")


def other_tokenizer(there):
    def swapped(held):
        words = held["model"]["vocab"]
        words["red"], words["blue"] = words["blue"], words["red"]
        return held

    _rewrite(there / "model" / "tokenizer.json", swapped)


def other_normalisation(there):
    _rewrite(there / "model" / "processor_config.json", lambda held: json.loads(json.dumps(held).replace("0.5", "0.4")))


def other_settings_and_tokenizer(there):
    other_tokenizer(there)
    _rewrite(there / "model" / "generation_config.json", lambda held: held | {"max_length": 77})


CHANGES = {
    reversed_data: "data.json has its records in another order",
    halved_data: "data.json had 24 records and has 12 now",
    one_word: "data.json has other records",
    one_pixel: "data.json names pictures that have changed",
    other_weights: "the model it started from has another model.safetensors",
    other_template: "the model it started from has another chat_template.jinja",
    other_further_template: "the model it started from has another additional_chat_templates/tools.jinja",
    other_tokenizer: "the model it started from has another tokenizer.json",
    other_normalisation: "the model it started from has another processor_config.json",
    other_settings_and_tokenizer: "the model it started from has another generation_config.json and 1 more file",
    None: "it had 1 process and has 2 now",
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_run_is_not_gone_on_with_and_what_changed_is_said(there, monkeypatch, change):
    if change:
        change(there)
    else:
        monkeypatch.setattr("evomoe.training.identity.process_count", lambda: 2)
    before = RunFolder("run").identity.read_text()
    for start in (run, describe):
        with pytest.raises(
            OptionError, match=f"^output: run holds a run that is not quite this one: {CHANGES[change]}[.]"
        ) as caught:
            start(_recipe(), resume=True)
        assert "`resume_anyway`" in str(caught.value)
    assert RunFolder("run").identity.read_text() == before


def test_the_same_run_goes_on_also_when_files_were_touched_or_written_anew(there, began, tmp_path):
    _rewrite(there / "data.json", lambda records: records)
    (there / "data.json").write_text((there / "data.json").read_text().replace("{", "{ "))
    for file in [*there.glob("model/*"), *there.glob("images/*")]:
        os.utime(file)
    (there / "model" / "README.md").write_text("# read me\n")
    final = run(_recipe(), resume=True, report=False)
    os.chdir(began)
    straight = run(_recipe().but(output=str(tmp_path / "straight")), report=False)
    assert changed(straight, there / final) == set()


def test_one_who_means_it_goes_on_and_it_is_written_down(there, caplog):
    one_word(there)
    assert describe(_recipe(), resume_anyway=True)
    final = run(_recipe(), report=False, resume_anyway=True)
    assert final.is_dir() and "data.json has other records. It goes on all the same." in caplog.text
    assert json.loads(RunFolder("run").identity.read_text())["changes"] == ["data.json has other records"]
    run(_recipe(), resume=True, report=False)  # which is what it is now
    assert json.loads(RunFolder("run").identity.read_text())["changes"] == ["data.json has other records"]


def test_a_run_without_a_checkpoint_has_nothing_to_mix_up(there):
    shutil.rmtree(RunFolder("run").stage(2).checkpoints)
    one_word(there)
    assert run(_recipe(), resume=True, report=False).is_dir()


def test_other_experts_are_another_run(workspace, kill_at):
    first = run(make_recipe(workspace, "experts", stages=(2,)), report=False).parent / "evolved_experts.safetensors"
    recipe = make_recipe(workspace, stages=(3,), init_options={"experts": str(first)})
    kill_at["routing"] = 3
    with pytest.raises(RuntimeError, match="killed"):
        run(recipe, report=False)
    save_file({name: tensor * 2 for name, tensor in load_file(first).items()}, first)
    with pytest.raises(OptionError, match="its file of experts has other content"):
        run(recipe, resume=True, report=False)


def test_a_data_set_in_memory_of_the_library_is_compared_too(there, monkeypatch):
    import datasets

    folder = there / "saved"
    rows = [
        {"id": str(n), "conversations": [{"from": "human", "value": "is it ?"}, {"from": "gpt", "value": "yes"}]}
        for n in range(16)
    ]
    datasets.Dataset.from_list(rows).save_to_disk(folder)
    recipe = _recipe().but(output="other", data=str(folder))
    monkeypatch.setattr(EvoMoETrainer, "train", lambda self, **_: (_ for _ in ()).throw(RuntimeError("killed")))
    with pytest.raises(RuntimeError, match="killed"):
        run(recipe, report=False)
    (there / "other" / "stage2_evolution" / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    shutil.rmtree(folder)
    datasets.Dataset.from_list(rows[::-1]).save_to_disk(folder)
    with pytest.raises(OptionError, match="has its records in another order"):
        run(recipe, resume=True, report=False)


HOLDER = """
import sys
from evomoe.recipe.run_folder import RunFolder
with RunFolder(sys.argv[1]).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_commands_are_not_at_one_folder_and_a_killed_one_lets_go(there, monkeypatch):
    monkeypatch.setattr("evomoe.recipe.run_folder.PATIENCE", 0.2)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(OptionError, match="^output: another command is at work in run; wait until it has ended"):
        run(_recipe(), resume=True, report=False)
    assert describe(_recipe(), resume=True)
    holder.kill()
    holder.wait()
    assert run(_recipe(), resume=True, report=False).is_dir()


def test_a_lock_that_is_a_link_leads_nowhere(there):
    (there / "mine.txt").write_text("mine")
    RunFolder("run").lock.unlink(missing_ok=True)
    RunFolder("run").lock.symlink_to(there / "mine.txt")
    run(_recipe(), resume=True, report=False)
    assert (there / "mine.txt").read_text() == "mine"


class Killed(BaseException):
    """No block that tidies up is run after a kill; this one is let through by those that tidy up after errors."""


@pytest.mark.parametrize("operation", ["os.replace", "pathlib.Path.open", "os.fsync"])
def test_a_run_that_is_killed_in_its_first_moments_leaves_no_dead_folder(workspace, monkeypatch, operation):
    """At each file operation before training in turn; what a block would tidy up stays, as after a kill."""
    recipe = make_recipe(workspace, stages=(2,), steps=2)
    monkeypatch.setattr("evomoe.training.run._train", lambda *a: Path("trained"))
    for when in range(1, 20):
        calls = []
        owner, _, name = operation.rpartition(".")
        with monkeypatch.context() as patch:
            target = Path if owner == "pathlib.Path" else os
            original = getattr(target, name)

            def dying(*args, original=original, when=when, calls=calls, **kwargs):
                done = original(*args, **kwargs)
                calls.append(args)
                if len(calls) >= when:
                    raise Killed
                return done

            def alive(when=when, calls=calls) -> bool:
                return len(calls) < when

            patch.setattr(target, name, dying)
            patch.setattr(
                "evomoe.support.files.remove", lambda path, alive=alive: path.unlink(missing_ok=True) if alive() else None
            )
            try:
                run(recipe)
            except Killed:
                pass
            else:
                break
        assert run(recipe, resume="if begun") == Path("trained")
        shutil.rmtree(recipe.output)
    assert when > 2
