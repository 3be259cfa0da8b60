"""Runs on streams: looked at, trained, stopped, gone on with, told of."""

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import pytest
from small_runs import changed, make_recipe
from stop_at import StopAt
from tiny.workspace import make_records
from two_processes import DEEPSPEED, assert_same_weights, needs_deepspeed, of_two, recipe_of, zero

from evomoe.data.stream import Lane
from evomoe.data.streamed import StreamedDataset
from evomoe.recipe.dry_run_options import DryRunOptions
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.run_folder import RunFolder, check_paths
from evomoe.support.errors import OptionError
from evomoe.training.checked_run import check_run, load_data
from evomoe.training.dry_run import describe
from evomoe.training.every_part import spare_picture
from evomoe.training.run import run
from evomoe.training.trainer import EvoMoETrainer


def write_tars(workspace: Path, records: list[dict], shards: int = 3) -> str:
    """The records with their pictures in so many tars, and the pattern of these."""
    for shard in range(shards):
        with tarfile.open(workspace / f"shard-{shard}.tar", "w") as tar:
            for number, record in enumerate(records[shard::shards]):
                if name := record.get("image"):
                    tar.add(workspace / "images" / name, f"{number}.png")
                text = json.dumps(record).encode()
                member = tarfile.TarInfo(f"{number}.json")
                member.size = len(text)
                tar.addfile(member, io.BytesIO(text))
    return str(workspace / "shard-*.tar")


def streamed(workspace: Path, output: str = "run", steps: int = 4, buffer: int = 5, **changes) -> Recipe:
    return make_recipe(workspace, output, steps, stages=(1, 2, 3)).but(
        data=str(workspace / "shard-*.tar"), image_root=None, streaming=buffer, **changes
    )


@pytest.fixture
def tars(workspace) -> Path:
    write_tars(workspace, make_records())
    return workspace


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The names of the records that become items, in order."""
    names, item = [], StreamedDataset.item
    monkeypatch.setattr(StreamedDataset, "item", lambda self, row: names.append(row.where) or item(self, row))
    return names


@pytest.mark.parametrize("stage", ["warmup", "evolution", "routing"])
@pytest.mark.parametrize(("workers", "packing"), [(0, False), (2, True)])
def test_a_run_that_was_killed_goes_on_at_the_record(tars, kill_at, stage, workers, packing):
    straight = run(streamed(tars, "straight", packing=packing), report=False)
    recipe = streamed(tars, "killed", packing=packing, workers=workers)
    kill_at[stage] = 3
    with pytest.raises(RuntimeError, match="killed"):
        run(recipe, report=False)
    kill_at.clear()
    assert changed(straight, run(recipe, resume=True, report=False)) == set()


def test_stages_go_on_where_the_one_before_has_ended(tars, read, monkeypatch):
    """4 steps of 8 records a stage, of 24 records: the order of the whole run is one."""
    run(streamed(tars), report=False)
    taken = read[-96:]
    assert [len({*taken[start : start + 24]}) for start in range(0, 96, 24)] == [24] * 4
    opened, original = [], Lane.__init__
    monkeypatch.setattr(Lane, "__init__", lambda self, *a: (opened.append(a[-1]), original(self, *a))[1])
    run(streamed(tars, "again"), report=False)
    assert [state and state["number"] > 16 for state in opened] == [None, True, True], "records are read again"
    read.clear()
    short = streamed(tars, "short")
    run(
        short.but(
            stage3=short.stage(3).__class__(**vars(short.stage3) | {"seen_records": 64}), stages=(1, 3), expert_init="noise"
        ),
        report=False,
    )
    assert read[-32:] == taken[-32:]


def test_what_is_taken_again_after_a_stop_is_no_more_than_a_block(tars, kill_at, monkeypatch):
    from evomoe.data import shards

    kill_at["warmup"] = 3
    recipe = streamed(tars).but(stages=(1,))
    with pytest.raises(RuntimeError, match="killed"):
        run(recipe, report=False)
    kill_at.clear()
    opened, original = [], shards.rows_of_tar
    monkeypatch.setattr(shards, "rows_of_tar", lambda path, start: opened.append((path.name, start)) or original(path, start))
    run(recipe, resume=True, report=False)
    assert [start for _, start in opened[1:]].count(0) == len(opened) - 2, opened  # the first is for the records looked at


def test_several_sources_with_weights_go_on_too(tars, kill_at):
    (tars / "more").mkdir()
    (tars / "more" / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in make_records(10)))

    def recipe(output: str) -> Recipe:
        roots = (None, str(tars / "images"))
        return streamed(tars, output).but(data=(str(tars / "shard-*.tar"), f"{tars}/more/data.jsonl:3"), image_root=roots)

    straight = run(recipe("straight"), report=False)
    kill_at["routing"] = 3
    with pytest.raises(RuntimeError, match="killed"):
        run(recipe("killed"), report=False)
    kill_at.clear()
    assert changed(straight, run(recipe("killed"), resume=True, report=False)) == set()


def test_other_shards_are_refused_when_a_run_goes_on(tars, kill_at):
    kill_at["warmup"] = 3
    with pytest.raises(RuntimeError, match="killed"):
        run(streamed(tars), report=False)
    kill_at.clear()
    whole = (tars / "shard-2.tar").read_bytes()
    (tars / "shard-2.tar").write_bytes(whole + bytes(1024))  # which a tar may end with
    with pytest.raises(OptionError, match=r"shard-\*.tar has shards of other names or sizes"):
        run(streamed(tars), resume=True, report=False)
    (tars / "shard-9.tar").write_bytes(whole)
    with pytest.raises(OptionError, match=r"shard-\*.tar had 3 shards and has 4 now"):
        run(streamed(tars), resume=True, report=False)
    with pytest.raises(ValueError, match=r"The stream had \[3\] shards when .*checkpoint-2 was written, and has \[4\] now"):
        run(streamed(tars), resume_anyway=True, report=False)


def test_the_dry_run_says_what_is_not_known(tars):
    text = describe(streamed(tars, steps=7))
    assert f"Stage 1 (warmup): a stream of {tars}/shard-*.tar\n" in text
    assert "shard-*.tar: 3 shards, 100% of the records\n" in text
    assert "  read and checked: the first 24 records; the others are checked when they are read, and their number" in text
    assert "  shuffled within 5 records; a source that ends begins anew\n" in text
    assert "  7 steps of 4 x 2 records" in text and "the longest records among the first" in text
    assert "a pass takes" not in text and "smaller: `stage" not in text
    assert "measured over 2 steps" in describe(streamed(tars, steps=7).but(stages=(1,)), options=DryRunOptions(measure=2))


def test_a_whole_run_leaves_report_and_card(tars):
    final = run(streamed(tars, steps=2))
    folder = RunFolder(tars / "run")
    assert folder.report.is_file() and "shard-*.tar" in (final / "README.md").read_text()
    assert not (tars / "run" / "skipped_records.txt").exists()


def test_bad_records_are_found_first_or_when_they_are_read(workspace, monkeypatch, caplog):
    monkeypatch.setattr("evomoe.data.stream.HEAD", 4)
    records = make_records()
    records[20]["conversations"].pop()
    write_tars(workspace, records)
    recipe = streamed(workspace).but(stages=(1,))
    with pytest.raises(
        ValueError, match=r"shard-2.tar, record 6 \(id '20'\): there is no assistant turn.*Repair it, or leave it out"
    ):
        run(recipe, report=False)
    run(recipe.but(output=str(workspace / "skip"), on_bad_record="skip"), report=False)
    assert "left out of its batch: " in caplog.text and "shard-2.tar, record 6 (id '20')" in caplog.text
    monkeypatch.setattr("evomoe.data.stream.HEAD", 256)
    with pytest.raises(ValueError, match=r"shard-\*.tar: 1 of 24 records is bad:"):
        run(recipe.but(output=str(workspace / "first")), report=False)


def test_a_batch_of_bad_records_alone_takes_a_good_one(workspace, monkeypatch):
    monkeypatch.setattr("evomoe.data.stream.HEAD", 4)
    records = make_records()
    for record in records[12:]:
        record["conversations"].pop()
    write_tars(workspace, records, shards=1)
    recipe = streamed(workspace, buffer=1, on_bad_record="skip").but(stages=(1,))
    assert run(recipe, report=False).is_dir()


def test_a_bad_record_costs_no_step(workspace, monkeypatch):
    monkeypatch.setattr("evomoe.data.stream.HEAD", 4)
    records = make_records()
    records[20]["conversations"].pop()
    write_tars(workspace, records, shards=1)
    recipe = streamed(workspace, buffer=1).but(stages=(1,))
    with pytest.raises(
        ValueError, match=r"shard-0.tar, record 20 .*The 2 steps before it are saved: `resume`.*bad_record=skip`.$"
    ):
        run(recipe, report=False)
    whole = run(recipe.but(output=str(workspace / "whole"), on_bad_record="skip"), report=False)
    assert changed(whole, run(recipe.but(on_bad_record="skip"), resume=True, report=False)) == set()


def test_a_stream_must_begin_with_a_picture_if_training_needs_one(workspace, monkeypatch):
    monkeypatch.setattr("evomoe.data.stream.HEAD", 4)
    write_tars(workspace, sorted(make_records(), key=lambda record: "image" in record), shards=1)
    recipe = streamed(workspace).but(stages=(1,))
    assert run(recipe, report=False).is_dir()
    projector = recipe.but(output=str(workspace / "projector"), stage1=dataclasses.replace(recipe.stage1, train="projector"))
    with pytest.raises(OptionError, match=r"data: none of the first 4 records of the stream has a picture"):
        run(projector, report=False)
    dataset = load_data(recipe, check_run(projector, resume=False).processor)[1]
    model = check_run(projector).prepared(1)
    with pytest.raises(OptionError, match=r"none of the first 4 records"):
        spare_picture(model, dataset, weights_are_shared=True)


def test_a_step_that_diverges_names_its_records(tars, monkeypatch):
    original = EvoMoETrainer.__init__

    class Broken(StopAt):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 1:
                next(model.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(
        EvoMoETrainer, "__init__", lambda self, *a, **k: (original(self, *a, **k), self.add_callback(Broken(9)))[0]
    )
    with pytest.raises(ValueError, match=r"The step's records: .*/shard-\d.tar, record \d \(id '\d+'\), .* and 3 more records"):
        run(streamed(tars).but(stages=(1,)), report=False)


def test_what_cannot_be_is_said_before_anything_is_loaded(tars):
    good = streamed(tars)
    with pytest.raises(OptionError, match=r"stage2.steps: it must be given with `streaming`: nobody knows how long"):
        good.but(stage2=good.stage(2).__class__(epochs=2, train="ffn"))
    with pytest.raises(OptionError, match=r"streaming: .*shard-\*.tar is read as a stream; give the records to shuffle"):
        good.but(streaming=0)
    with pytest.raises(OptionError, match=r"streaming: .*must be a whole number from 0 to"):
        good.but(streaming=-1)
    with pytest.raises(OptionError, match=r"train_sampling_strategy says nothing of a stream"):
        describe(good.but(trainer={"train_sampling_strategy": "random"}))
    check_paths(good, False)
    for name in ("none-*.tar", "shard-{0..5}.tar", "none.tar", "none.parquet"):
        with pytest.raises(ValueError, match=r"there is no such file"):
            check_paths(good.but(data=str(tars / name)), False)


def recipe_of_tars(workspace, output: str, batch_size: int, trainer: dict | None = None) -> Recipe:
    recipe = recipe_of(workspace, output, batch_size, trainer)
    return recipe.but(data=str(workspace / "shard-*.tar"), image_root=None, streaming=5)


@pytest.mark.slow
@pytest.mark.parametrize("shards", [2, 3])
def test_two_processes_that_were_killed_go_on_as_two_or_as_one(workspace, shards):
    write_tars(workspace, make_records(), shards)

    def recipe(output: str, batch_size: int) -> Recipe:
        return recipe_of_tars(workspace, output, batch_size)

    of_two(recipe("straight", 2))
    for goes_on in ("two", "one"):
        of_two(recipe(goes_on, 2), killed={"evolution": 3})
    of_two(recipe("two", 2), "--resume")
    assert {path.name for path in (workspace / "two" / "stage2_evolution").glob("stream*")} == {"stream_0.json", "stream_1.json"}
    run(recipe("one", 4), resume=True)
    for goes_on in ("two", "one"):
        assert_same_weights(workspace / "straight", workspace / goes_on)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["fsdp", pytest.param("zero3", marks=needs_deepspeed)])
def test_models_that_are_shared_out_read_a_stream_alike(workspace, way):
    write_tars(workspace, make_records(), 3)
    shared = {"fsdp": True, "use_cpu": False} if way == "fsdp" else zero(workspace, 3)
    how = {"like_gpus": True} | ({"python": DEEPSPEED} if way == "zero3" else {})
    of_two(recipe_of_tars(workspace, "two", 2))
    of_two(recipe_of_tars(workspace, "shared", 2, shared), killed={"evolution": 3}, **how)
    of_two(recipe_of_tars(workspace, "shared", 2, shared), "--resume", **how)
    assert_same_weights(workspace / "two", workspace / "shared")
