"""Runs on several sources with weights: looked at, trained, stopped, gone on with, told of."""

import json
import shutil
from collections import Counter

import pytest
from small_runs import changed, make_recipe
from stop_at import StopAt
from tiny.workspace import make_records

from evomoe.data.conversations import ConversationDataset
from evomoe.recipe.options import StageOptions
from evomoe.recipe.run_folder import RunFolder, check_paths
from evomoe.support.errors import OptionError
from evomoe.training.dry_run import describe
from evomoe.training.run import run
from evomoe.training.trainer import EvoMoETrainer


@pytest.fixture
def mix(workspace, tmp_path):
    """A recipe on two sources, each with its own folder of pictures."""
    shutil.copytree(workspace / "images", tmp_path / "pictures")
    (tmp_path / "second.json").write_text(json.dumps(make_records(10)))
    data, roots = (
        [str(workspace / "data.json"), f"{tmp_path / 'second.json'}:1.5"],
        [str(workspace / "images"), str(tmp_path / "pictures")],
    )
    return make_recipe(workspace, str(tmp_path / "run"), steps=0, stages=(2,)).but(data=data, image_root=roots)


def test_the_dry_run_has_a_line_for_each_source(mix):
    text = describe(mix)
    assert "Stage 2 (evolution): 39 records of " in text and "second.json:1.5\n" in text
    assert "  a pass takes 24 of data.json, which has 24 records (weight 1)\n" in text
    assert "  a pass takes 15 of second.json, which has 10 records (weight 1.5)\n" in text
    assert "  5 steps of 4 x 2 records" in text
    assert "a pass takes" not in describe(mix.but(data=mix.data[0], image_root=mix.image_root[0]))


def test_a_run_takes_what_the_weights_say_and_goes_on_at_the_record(mix, monkeypatch, tmp_path):
    read, get = [], ConversationDataset.__getitem__
    monkeypatch.setattr(ConversationDataset, "__getitem__", lambda self, number: read.append(number) or get(self, number))
    straight = run(mix.but(output=str(tmp_path / "straight")), report=False)
    assert set(Counter(read[:39]).values()) == {1, 2} and sum(number >= 24 for number in read[:39]) == 15
    original = EvoMoETrainer.__init__
    with monkeypatch.context() as patch:
        patch.setattr(EvoMoETrainer, "__init__", lambda self, *a, **k: (original(self, *a, **k), self.add_callback(StopAt(3)))[0])
        with pytest.raises(RuntimeError, match="killed"):
            run(mix, report=False)
    assert changed(straight, run(mix, resume=True, report=False)) == set()
    identity = json.loads(RunFolder(mix.output).identity.read_text())["data"]
    assert [one["records"] for one in identity.values()] == [24, 10]
    assert [key.rpartition("/")[2] for key in identity] == ["images", "pictures"]


def test_another_second_source_is_another_run(mix, monkeypatch, tmp_path):
    original = EvoMoETrainer.__init__
    with monkeypatch.context() as patch:
        patch.setattr(EvoMoETrainer, "__init__", lambda self, *a, **k: (original(self, *a, **k), self.add_callback(StopAt(3)))[0])
        with pytest.raises(RuntimeError, match="killed"):
            run(mix, report=False)
    with pytest.raises(OptionError, match=r"run of another recipe \(data: .*second.json:1.5'\) -> .*second.json:2'\)\)"):
        run(mix.but(data=[mix.data[0], mix.data[1].replace("1.5", "2")]), resume=True)
    (tmp_path / "second.json").write_text(json.dumps(make_records(10)[::-1]))
    with pytest.raises(OptionError, match=r"second.json, pictures in .*pictures has its records in another order"):
        run(mix, resume=True)


def test_the_card_names_all_sources(mix):
    stages = {
        f"stage{stage}": StageOptions(steps=1, batch_size=4, accumulation=1, train=train)
        for stage, train in ((2, "ffn"), (3, "router"))
    }
    final = run(mix.but(stages=(2, 3), **stages), report=False)
    card = (final / "README.md").read_text()
    assert "data.json, second.json" in card and ":1.5" not in card


def test_what_cannot_be_is_said_before_anything_is_loaded(mix, workspace):
    with pytest.raises(ValueError, match="none.json: there is no such file"):
        check_paths(mix.but(data=[mix.data[0], str(workspace / "none.json:2")]), False)
    with pytest.raises(OptionError, match="image_root: .*nowhere is not a folder"):
        check_paths(mix.but(image_root=[mix.image_root[0], str(workspace / "nowhere")]), False)
    with pytest.raises(OptionError, match="train_sampling_strategy=sequential takes each record once, whatever its weight"):
        describe(mix.but(trainer={"train_sampling_strategy": "sequential"}))
    assert "sequential" in describe(
        mix.but(data=[name.removesuffix(":1.5") for name in mix.data], trainer={"train_sampling_strategy": "sequential"})
    )


def test_stages_share_sources_whatever_their_weights(mix, monkeypatch):
    from evomoe.training import checked_run

    loaded, original = [], checked_run.load_records
    monkeypatch.setattr(checked_run, "load_records", lambda source, *a: (loaded.append(source.name), original(source, *a))[1])
    own = StageOptions(
        steps=1, data=(mix.data[1].replace("1.5", "3"), mix.data[0]), image_root=mix.image_root[::-1], train="router"
    )
    text = describe(mix.but(stages=(2, 3), stage3=own))
    assert "a pass takes 30 of second.json" in text and "a pass takes 15 of second.json" in text
    assert loaded == ["data.json", "second.json"]
