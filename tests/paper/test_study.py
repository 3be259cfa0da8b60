"""Tables in small: rows share what they have in common, what is finished stays, each number is where it belongs."""

import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from scipy import stats

from evomoe.data import mini
from evomoe.loading import load_model, load_processor
from evomoe.paper import base_model, in_memory, measure, rows
from evomoe.paper.command import run_table
from evomoe.paper.results import collect, keep, paired_difference, render
from evomoe.paper.scale import MiniScale
from evomoe.paper.study import all_tasks, cells, experts_alone, run, trainings
from evomoe.paper.table import Row, Table
from evomoe.paper.table_10 import mean_of_shuffles
from evomoe.paper.tables import TABLES
from evomoe.paper.task import Scoring, Training, identity, run_once
from evomoe.recipe import StageOptions
from evomoe.routers import ROUTERS
from evomoe.run_folder import stage_folder
from evomoe.small_vlm import Architecture
from evomoe.upcycling import upcycle

TINY = MiniScale(evolution_steps=3, routing_steps=2, batch_size=2, router_options={"hypernet_width": 3, "rank": 2})
LONGEST = measure.LONGEST
SIZES = mini.TestSizes(2, 2, 4, 2, 2, 1, 3)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "mini-world"
    mini.write(folder, seed=0, sizes=mini.Sizes(8, 8, 8, 8, SIZES, SIZES))
    return folder


@pytest.fixture(scope="module")
def base(world) -> Path:
    """A model as the base model is made, after a step of each kind."""
    stage = StageOptions(steps=1, batch_size=2, accumulation=1, train="text+projector")
    sizes = Architecture(vision_width=8, vision_layers=1, hidden_size=8, ffn_size=16, layers=4, heads=2, vocabulary=300)
    recipe = base_model.BaseRecipe(
        sizes, tower_steps=2, tower_batch_size=2, scaling_pictures=2, letters=stage, words=stage, pictures=stage
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mini, "ensure", lambda seed, root: world)
        learn, ran, threads = base_model._learn, [], torch.get_num_threads()
        patch.setattr(base_model, "_learn", lambda *args: ran.append(torch.get_num_threads()) or learn(*args))
        made = base_model.train("", 0, world.parent, recipe)
        patch.setattr(base_model, "_assemble", None)
        assert base_model.train("", 0, world.parent, recipe) == made  # once
        assert torch.get_num_threads() == threads and ran == [2] * 4  # two while it learns
    assert [path.name for path in world.parent.iterdir() if "base" in path.name] == [made.name]
    return made


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    monkeypatch.setattr(measure, "LONGEST", 2)


def some(names, base, world, seeds=(0,)):
    return cells(TABLES["2"].chosen(names), seeds, TINY, {"": base}, world, "test")


def test_every_table_has_rows_that_can_be_planned(world):
    for number, table in TABLES.items():
        assert table.name == number and table.seeds >= (3 if number in ("2", "3", "4", "10", "11", "15") else 1)
        planned = cells(table.rows, (0, 1), MiniScale(), {"": Path("b"), "narrow": Path("n"), "wide": Path("w")}, world, "test")
        assert len({cell.scoring.name for cell in planned}) == 2 * len(table.rows)  # no two cells are one model asked alike
        for cell in planned:
            moe = cell.recipe.moe
            if 3 in cell.recipe.stages:
                ROUTERS[moe.router](8, moe.num_experts, **moe.router_options).check(moe.num_experts_per_tok, moe.gate)
            on = {stage: cell.recipe.stage(stage).data or cell.recipe.data for stage in cell.recipe.stages}
            steps = sum(cell.recipe.stage(stage).steps for stage, data in on.items() if data.endswith("stage2.json"))
            assert steps == 600 * (2 if cell.row.name == "two" and number == "13" else 0.5 if number == "anyexperts" else 1)
            assert {cell.recipe.stage(stage).batch_size for stage in cell.recipe.stages} == {32}


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


def test_a_study_trains_scores_and_goes_on(base, world, tmp_path, monkeypatch):
    study = tmp_path / "study"
    (cell,) = some(["evomoe"], base, world)
    alone = experts_alone(cell, limit=4)
    assert [scoring.expert for scoring in alone] == [0, 1, 2, 3] and {scoring.split for scoring in alone} == {"validation"}
    run([alone[0], alone[3], cell.scoring], study)
    found = json.loads(cell.scoring.file(study).read_text())
    assert set(found["scores"]) == {*found["answers"]} and len(found["scores"]) == 7 and "mini-textvqa-ocr" in found["scores"]
    mean = (sum(found["scores"].values()) - found["scores"]["mini-mme"] * 19 / 20) / 7
    assert found["average"] == pytest.approx(mean)
    model = json.loads((cell.scoring.training.model(study) / "config.json").read_text())
    assert model["evomoe"]["router"] == "dtr" and model["evomoe"]["router_options"] == {"hypernet_width": 3, "rank": 2}

    def never(self, study):
        raise AssertionError(self.name)

    monkeypatch.setattr(Training, "run", never)
    monkeypatch.setattr(Scoring, "run", never)
    run([alone[0], alone[3], cell.scoring], study)
    with pytest.raises(AssertionError, match="scores-"):
        run([alone[1]], study)


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
        patch.setattr("evomoe.trainer.ProgressBar.on_step_end", stop(2))
        with pytest.raises(KeyboardInterrupt):
            evomoe.run(tmp_path)
    checkpoint = stage_folder(evomoe.folder(tmp_path), 2).last_checkpoint()
    assert checkpoint is not None and not evomoe.done(tmp_path)
    steps: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "evomoe.trainer.ProgressBar.on_step_end", lambda self, args, state, *more, **options: steps.append(state.global_step)
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


def test_each_scoring_asks_the_model_that_it_names(base, world, tmp_path, monkeypatch):
    """Experts alone against models all of whose experts are that one; shuffles; splits and limits."""
    monkeypatch.setattr(measure, "LONGEST", 8)
    torch.manual_seed(0)
    options = {"num_experts": 4, "router": "linear", "moe_layers": "all", "expert_init": "noise", "init_options": {"std": 2.0}}

    def written(only: int | None = None) -> Path:
        model = upcycle(load_model(base), **options)
        if only is not None:
            for block in model.moe_blocks.values():
                for expert in block.experts:
                    expert.load_state_dict(block.experts[only].state_dict())
        folder = tmp_path / f"expert{only}"
        model.save_pretrained(folder)
        load_processor(base).save_pretrained(folder)
        return folder

    def answers(model: Path, **asked) -> dict:
        return measure.score_model(Scoring(model, world, **{"split": "test"} | asked), tmp_path)["answers"]

    whole = written()
    own, alone = answers(whole), [answers(whole, expert=number) for number in range(4)]
    for number, given in enumerate(alone):
        assert given == answers(written(number)) and given not in alone[:number] and given != own
    first, second = (answers(whole, shuffle=seed) for seed in (1, 2))
    assert own != first != second != own
    assert answers(whole, shuffle=1) == first
    few, other = answers(whole, limit=1), answers(whole, split="validation")
    for name, given in own.items():
        assert {*few[name]} < {*given} and len(few[name]) >= 1, name
    assert other != own
    plain = Scoring(whole, world, "test")
    changes = ({"split": "validation"}, {"limit": 1}, {"expert": 0}, {"expert": 1}, {"shuffle": 1}, {"experts_per_token": 1.0})
    assert len({plain.name, *(replace(plain, **change).name for change in changes)}) == len(changes) + 1


def test_tasks_in_one_process_share_data_and_questions(base, world, tmp_path, monkeypatch):
    in_memory._training_data.cache_clear()
    in_memory.benchmarks.cache_clear()
    loads, prepares = [], []
    load_data, prepare = in_memory.load_data, in_memory.prepare
    monkeypatch.setattr(in_memory, "load_data", lambda *args, **more: loads.append(args) or load_data(*args, **more))
    monkeypatch.setattr(in_memory, "prepare", lambda *args, **more: prepares.append(args) or prepare(*args, **more))
    monkeypatch.setattr("evomoe.stages.load_data", lambda recipe: pytest.fail("a stage read its data itself"))
    run([cell.scoring for cell in some(["evomoe", "dense"], base, world)], tmp_path / "shared")
    assert len(loads) == 1 and len(prepares) == 7
    other = some(["dense"], base, world)[0].recipe.but(data=str(world / "train" / "stage1.json"))
    assert len(in_memory.training_data(other, base)) == 8 and len(loads) == 2


def test_the_base_that_comes_with_the_package_is_the_one_that_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("EVOMOE_CACHE", str(tmp_path))
    monkeypatch.setattr(base_model, "train", lambda width, seed: tmp_path / f"trained {width} {seed}")
    home = base_model.ensure()
    assert home == base_model.folder() and home.parent == base_model.SHIPPED
    assert [path.name for path in base_model.SHIPPED.iterdir()] == [home.name]  # nothing ships that nobody asks for
    size = sum(parameter.numel() for parameter in load_model(home).parameters())
    assert 1e6 < size < 5e6
    assert base_model.ensure("", 1) == tmp_path / "trained  1" and base_model.folder("", 1).parent == tmp_path


def test_a_table_from_the_command_to_its_numbers(base, world, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EVOMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mini, "ensure", lambda seed: world)
    monkeypatch.setattr(base_model, "ensure", lambda width: base)
    monkeypatch.setattr("evomoe.paper.scale.MINI", TINY)
    planned = run_table("9", dry_run=True).splitlines()
    assert len(planned) == 12 and planned[0] == "narrow-dense (narrow (Qwen2-0.5B): dense): 1 seed"
    assert any(line.startswith("mini-base-narrow-v1") and "not trained yet" in line for line in planned)
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(mini, "folder", lambda seed: world)
    options = {"rows": ["evolution"], "seeds": 1, "study": tmp_path / "study", "results": tmp_path / "results"}
    text = run_table("2", **options)
    assert "| `dense` (a) dense" in text and "(d) evolution" in text and "(77.5)" in text and "EvoMoE" not in text
    assert "they disagree on" in capsys.readouterr().out
    assert text.startswith("Table 2: Ablation of the parts (test split)\n") and "A trial" not in text
    kept = json.loads((tmp_path / "results" / "table2.json").read_text())
    assert set(kept["rows"]) == {"dense", "evolution"} and kept["experts"].keys() == {"evolution/0"}
    recipe = kept["rows"]["evolution"]["recipe"]
    assert recipe["model"] == identity(base) and recipe["data"] == "mini-world/train/stage2.json"
    assert str(tmp_path) not in json.dumps(kept) and str(world.parent) not in json.dumps(kept)
    where = kept["rows"]["evolution"]["seeds"]["0"]["run"]
    assert set(where) == {"date", "commit", "machine", "threads", "versions"} and "torch" in where["versions"]
    assert kept["rows"]["evolution"]["seeds"]["0"]["trained"] == [where, where]  # Stages II and III
    model = kept["rows"]["evolution"]["seeds"]["0"]["model"]
    assert (tmp_path / "study" / model / "model.safetensors").is_file()
    assert f"`evolution`, seed 0: {tmp_path / 'study' / model}" in text
    few = run_table("2", **options | {"limit": 1, "results": None})
    assert few.startswith("Table 2: Ablation of the parts (test split, 1 question per benchmark)\n") and "A trial: MME" in few
    monkeypatch.setattr(base_model, "folder", lambda width: base)
    assert run_table("2", **options, dry_run=True).splitlines() == [  # the baseline is known
        "evolution ((d) evolution, linear): 1 seed",
        "7 tasks, 0 to be run: 0 trainings, 0 scorings",
    ]
    assert "36 tasks, 27 to be run: 9 trainings, 18 scorings" in run_table("2", **options | {"seeds": 4}, dry_run=True)
    again = options | {"study": tmp_path / "another"}  # where nothing is finished
    planned = run_table("2", **again, dry_run=True)
    assert "(a) dense" not in planned and "2 trainings, 5 scorings" in planned  # the kept baseline is good enough
    text = run_table("2", **again | {"rows": ["dense-ffn"]})
    assert "(a) dense" in text and "(d) evolution" in text and len([*(tmp_path / "another").glob("warmup-*/")]) == 1
    for other in (
        {"seeds": 2},
        {"limit": 2},
        {"results": tmp_path / "empty"},
        {"split": "validation"},
        {"rows": ["dense", "evolution"]},
    ):
        assert "dense ((a) dense)" in run_table("2", **again | other, dry_run=True), other
    monkeypatch.setattr("evomoe.paper.scale.MINI", replace(TINY, batch_size=3))
    assert "dense ((a) dense)" in run_table("2", **again, dry_run=True)  # another recipe
    monkeypatch.setattr("evomoe.paper.scale.MINI", TINY)
    assert "dense ((a) dense)" in run_table("2", **again | {"rows": ()}, dry_run=True)  # all rows are asked for
    path = tmp_path / "results" / "table2.json"
    kept = json.loads(path.read_text())
    kept["rows"]["dense"]["seeds"]["1"] = kept["rows"]["dense"]["seeds"]["0"]
    path.write_text(json.dumps(kept))
    assert "(a) dense" not in run_table("2", **again, dry_run=True)  # one seed more than is asked for
    other_base = shutil.copytree(base, tmp_path / base.name)
    weights = load_file(other_base / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, other_base / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr(base_model, "folder", lambda width: other_base)
    assert "dense ((a) dense)" in run_table("2", **again, dry_run=True)  # another base by the same name
    with pytest.raises(ValueError, match="^name: there is no table 7 to run; choose from 2, 3.* `scale=paper`"):
        run_table("7")
    with pytest.raises(ValueError, match="^rows: table 2 has no row 'moe'; choose from dense, moe-tuning"):
        run_table("2", rows=["moe"])


def test_what_is_kept_names_no_folder_of_this_machine(base, world):
    found = {"scores": {}, "average": 1.0, "run": {}}
    for table in ("2", "5"):
        chosen = cells(TABLES[table].rows, [0], TINY, {"": base}, world, "test")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "read_text", lambda path, **more: json.dumps(found))
            found_rows = collect(TABLES[table], chosen, Path("study"), {})
        kept = json.dumps(found_rows)
        assert str(world.parent) not in kept and "mini-world/train/stage2.json" in kept
        assert ("mini-world/train/stage1.json" in kept) == (table == "5")  # whose Stage II has other data in one row


def test_rows_that_differ_only_in_how_they_are_asked_have_recipes_of_their_own(base, world):
    found = {"scores": {}, "average": 1.0, "run": {}}
    chosen = cells(TABLES["10"].rows, [0], TINY, {"": base}, world, "test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_text", lambda path, **more: json.dumps(found))
        kept = collect(TABLES["10"], chosen, Path("study"), {})["rows"]
    assert kept["shuffle2"]["recipe"] == kept["moe-tuning"]["recipe"] | {"shuffle": 2}


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
    found = cells(table.chosen(["lookback", "ema"]), [0], still, {"": base}, world, "test")
    run([cell.scoring.training for cell in found], tmp_path)
    (evomoe,) = cells(table.chosen(["scaled_update"]), [0], still, {"": base}, world, "test")
    with pytest.raises(ValueError, match="`allow_collapsed_experts=True`"):
        run([evomoe.scoring.training], tmp_path)


def test_the_study_of_anyexperts_counts_experts_and_changes_routers_when_it_answers(base, world, tmp_path, monkeypatch):
    monkeypatch.setattr(mini, "ensure", lambda seed: world)
    monkeypatch.setattr(base_model, "ensure", lambda width: base)
    scale = replace(TINY, learning_rates=TINY.learning_rates | {"router+experts": 0.1})
    monkeypatch.setattr("evomoe.paper.scale.MINI", scale)
    monkeypatch.setattr(measure, "CALIBRATED", 2)
    names = ["top8", "top8-at5", "any8", "any8-at8", "any8-at4.8", "any8-shuffled", "batch"]
    text = run_table("anyexperts", rows=names, seeds=1, study=tmp_path / "study", results=tmp_path / "results")
    assert text.startswith("A variable number of experts (test split)") and "| real experts |" in text
    kept = json.loads((tmp_path / "results" / "tableanyexperts.json").read_text())
    assert len([*(tmp_path / "study").glob("routing-*/")]) == 3  # what only answers in another way is trained once
    mean = {name: row["seeds"]["0"]["experts_per_token"]["mini-gqa"] for name, row in kept["rows"].items()}
    assert mean["top8"] == 8 and mean["top8-at5"] == 5
    assert 6 < mean["any8"] < 10.5 and abs(mean["any8-at4.8"] - 4.8) < 0.7 < abs(mean["any8"] - 4.8)
    found = cells(TABLES["anyexperts"].chosen(names), [0], scale, {"": base}, world, "test")
    answers = {cell.row.name: json.loads(cell.scoring.file(tmp_path / "study").read_text())["answers"] for cell in found}
    assert answers["any8-shuffled"] != answers["any8-at8"] and mean["any8-shuffled"] != mean["any8"]
    trained = json.loads((found[-1].scoring.training.model(tmp_path / "study") / "config.json").read_text())
    assert trained["evomoe"]["router_options"]["cap_scope"] == "token"  # for answers, after a cap by batch in training
    assert mean["any8-shuffled"] == pytest.approx(8, abs=0.7)


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


def test_differences_are_paired_by_seed():
    mean, half = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert mean == 2.0 and half == pytest.approx(4.303 * 1.0 / 3**0.5)  # s = 1, t(2) = 4.303
    assert paired_difference([5.0], [3.0]) == (2.0, float("inf"))
    for n in (*range(2, 17), 31, 61):
        _, half = paired_difference(range(n), [0.0] * n)
        assert half == pytest.approx(stats.sem(range(n)) * stats.t.ppf(0.975, n - 1), rel=5e-4)
    four = (
        Row("a", "A", rows.DENSE, (50.0,)),
        Row("b", "B", rows.EVOMOE),
        Row("c", "C", rows.EVOMOE),
        Row("d", "D", rows.EVOMOE),
    )
    pairs = (("c", "b"), ("b", "d"), ("d", "b"))
    table = Table("2", "t", four, columns=("GQA",), baseline="a", comparisons=pairs)
    scores = {"a": (1.0, 2.0, 3.0), "b": (2.0, 4.0, 6.0), "c": (1.0, 2.0)}  # d was not run
    found = {
        "rows": {
            name: {"label": name, "seeds": {str(n): {"scores": {"mini-gqa": v}, "average": v} for n, v in enumerate(values)}}
            for name, values in scores.items()
        }
    }
    first, second, third, *further = render(table, found).splitlines()[2:]
    assert "2.0 ± 1.0 (50)" in first and "+2.00 [-0.48, +4.48]" in second and "-0.50" not in third
    assert further[0] == "" and "| rows " in further[1] and len(further) == 4
    assert "| c - b " in further[3] and "-1.50 [-7.85, +4.85]" in further[3]  # t(1) = 12.706, s = 0.707


def test_shuffles_are_compared_by_their_mean_seed_by_seed():
    def row(*averages):
        return {"seeds": {str(seed): {"average": value} for seed, value in enumerate(averages)}}

    found = {"moe-tuning": row(60.0, 70.0), "shuffle1": row(58.0, 70.0), "shuffle2": row(58.0, 66.0), "evomoe": row(50.0)}
    (line,) = mean_of_shuffles({"rows": found}).splitlines()[2:]
    assert [cell.strip() for cell in line.strip("|").split("|")] == ["moe-tuning", "2", "-2.00 [-2.00, -2.00]", "3 of 4"]
    found["evomoe-shuffle1"], found["shuffle2"] = row(51.0), row(58.0)
    moe, evomoe = mean_of_shuffles({"rows": found}).splitlines()[2:]
    assert " -2.00 " in moe and "2 of 2" in moe and " +1.00 " in evomoe and "0 of 1" in evomoe
    assert mean_of_shuffles({"rows": {"moe-tuning": row(60.0)}}) == ""


def test_what_was_kept_stays_beside_what_is_new(tmp_path):
    def row(recipe, **seeds):
        return {"recipe": {"rates": recipe}, "seeds": seeds}

    def kept():
        return json.loads((tmp_path / "table2.json").read_text())["rows"]

    one = {"table": 2, "scale": "mini", "split": "test", "limit": 0, "rows": {"a": row((1,), s0=1)}, "experts": {}}
    keep(one, tmp_path)
    keep({**one, "rows": {"b": row((2,), s0=2)}}, tmp_path)
    assert set(kept()) == {"a", "b"}
    keep({**one, "rows": {"a": row((1,), s1=2)}}, tmp_path)
    keep({**one, "rows": {"a": row((1,), s1=3), "b": row((4,), s1=5)}}, tmp_path)
    assert kept()["a"]["seeds"] == {"s0": 1, "s1": 3} and kept()["b"]["seeds"] == {"s1": 5}  # b has another recipe now
    before = kept()
    for other, name in (({"limit": 5}, "table2-limit5"), ({"split": "validation", "limit": 5}, "table2-validation-limit5")):
        path, found = keep({**one, "rows": {"b": row((4,), s0=6)}, **other}, tmp_path)
        written = json.loads(path.read_text())
        assert path == tmp_path / f"{name}.json" and written["rows"] == {"b": {"recipe": {"rates": [4]}, "seeds": {"s0": 6}}}
        assert found["rows"].keys() == {"b"} and kept() == before


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
