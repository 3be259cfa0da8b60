"""``evomoe table``: from the command to its numbers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny.study import TINY

from evomoe import mini
from evomoe.analysis.intervention import Intervention
from evomoe.cli import command_line as cli
from evomoe.paper.run_table import run_table
from evomoe.paper.study import base_model, measure
from evomoe.paper.study.study import cells
from evomoe.paper.study.task import identity
from evomoe.paper.tables import TABLES, rows
from evomoe.paper.tables.table import FROM_STAGE1, Row, Table
from evomoe.support.errors import OptionError


def test_a_table_from_the_command_to_its_numbers(base, world, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EVOMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mini, "ensure", lambda seed, stage2=0: world)
    monkeypatch.setattr(base_model, "ensure", lambda width: base)
    monkeypatch.setattr("evomoe.paper.run_table.MINI", TINY)
    planned = run_table("9", dry_run=True).splitlines()
    assert len(planned) == 12 and planned[0] == "narrow-dense (narrow (Qwen2-0.5B): dense): 1 seed"
    assert any(line.startswith("mini-base-narrow-v1") and "not trained yet" in line for line in planned)
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(mini, "folder", lambda seed, stage2=0: world)
    options = {"rows": ["evolution"], "seeds": 1, "study": tmp_path / "study", "results": tmp_path / "results"}
    said: list[str] = []
    text = run_table("2", **options, say=said.append)
    assert "| `dense` (a) dense" in text and "(d) evolution" in text and "(77.5)" in text and "EvoMoE" not in text
    (experts,) = said
    assert experts.startswith("evolution/0: experts alone ") and "they disagree on" in experts
    assert capsys.readouterr().out == ""  # what is printed is the command line's to decide
    assert text.startswith("Table 2: Ablation of the parts (test split)\n") and "A trial" not in text
    kept = json.loads((tmp_path / "results" / "table2.json").read_text())
    assert set(kept["rows"]) == {"dense", "evolution"} and kept["experts"].keys() == {"evolution/0"}
    worth = kept["experts"]["evolution/0"]
    assert worth["best"] >= max(worth["alone"]) and f"the router has {worth['whole']:.1f}" in text and "the router" not in experts
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
    monkeypatch.setattr("evomoe.paper.run_table.MINI", replace(TINY, batch_size=3))
    assert "dense ((a) dense)" in run_table("2", **again, dry_run=True)  # another recipe
    monkeypatch.setattr("evomoe.paper.run_table.MINI", TINY)
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
    with pytest.raises(ValueError, match="^name: there is no table '7'; choose from 2, 3.* `scale=paper`"):
        run_table("7")
    with pytest.raises(ValueError, match="^rows: table 2 has no row 'moe'; choose from dense, moe-tuning"):
        run_table("2", rows=["moe"])


def test_the_study_of_anyexperts_counts_experts_and_changes_routers_when_it_answers(base, world, tmp_path, monkeypatch):
    monkeypatch.setattr(mini, "ensure", lambda seed, stage2=0: world)
    monkeypatch.setattr(base_model, "ensure", lambda width: base)
    scale = replace(TINY, learning_rates=TINY.learning_rates | {"router+experts": 0.1})
    monkeypatch.setattr("evomoe.paper.run_table.MINI", scale)
    monkeypatch.setattr(measure, "CALIBRATED", 2)
    names = ["top8", "top8-at5", "any8", "any8-at8", "any8-at4.8", "any8-shuffled", "batch"]
    text = run_table("anyexperts", rows=names, seeds=1, study=tmp_path / "study", results=tmp_path / "results")
    assert text.startswith("A variable number of experts (test split)") and "| real experts |" in text
    kept = json.loads((tmp_path / "results" / "tableanyexperts.json").read_text())
    assert len([*(tmp_path / "study").glob("routing-*/")]) == 3  # what only answers in another way is trained once
    mean = {name: row["seeds"]["0"]["experts_per_token"]["mini-gqa"] for name, row in kept["rows"].items()}
    assert mean["top8"] == 8 and mean["top8-at5"] == 5
    assert 6 < mean["any8"] < 10.5 and abs(mean["any8-at4.8"] - 4.8) < 0.7 < abs(mean["any8"] - 4.8)
    found = cells(TABLES["anyexperts"].chosen(names), [0], scale, {"": base}, {0: world}, "test")
    by_benchmark = {name: row["seeds"]["0"]["experts_per_token"] for name, row in kept["rows"].items()}
    assert by_benchmark["any8-shuffled"] not in (by_benchmark["any8-at8"], by_benchmark["any8"])
    trained = json.loads((found[-1].scoring.training.model(tmp_path / "study") / "config.json").read_text())
    assert trained["evomoe"]["router_options"]["cap_scope"] == "token"  # for answers, after a cap by batch in training
    assert mean["any8-shuffled"] == pytest.approx(8, abs=0.7)


def test_a_table_from_outside_runs_through_the_command(base, world, tmp_path, monkeypatch, capsys):
    alone = Row("second", "expert 2 alone", FROM_STAGE1.but(stages=(2,)), (50.0, 1000.0), Intervention(expert=1))
    mine = Table("mine", "My own", (Row("dense", "dense", rows.DENSE), alone), columns=("GQA", "MME"), baseline="dense")
    monkeypatch.setitem(TABLES, mine.name, mine)
    monkeypatch.setattr(mini, "ensure", lambda seed, stage2=0: world)
    monkeypatch.setattr(base_model, "ensure", lambda width: base)
    monkeypatch.setattr("evomoe.paper.run_table.MINI", TINY)
    folders = ["--study", str(tmp_path / "study"), "--results", str(tmp_path / "results")]
    assert cli.main(["table", "mine", "--limit", "1", "--seeds", "1", *folders]) == 0
    before, table = capsys.readouterr().out.split("My own (test split, 1 question per benchmark)")
    assert before.startswith("second/0: experts alone ") and before.count("\n") == 1
    header, _, dense, second = [line for line in table.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in header.strip("|").split("|")] == ["row", "seeds", "GQA", "MME", "AVG", "AVG - dense"]
    assert "`dense` dense" in dense and "`second` expert 2 alone" in second and "(50)" in second and "(1000)" in second
    kept = json.loads((tmp_path / "results" / "tablemine-limit1.json").read_text())["rows"]
    assert kept["second"]["recipe"]["expert"] == 1 and "expert" not in kept["dense"]["recipe"]


def test_a_table_without_a_baseline_runs_the_rows_that_are_asked_for(base, world, tmp_path, monkeypatch):
    monkeypatch.setattr(mini, "folder", lambda seed, stage2=0: world)
    monkeypatch.setattr(base_model, "folder", lambda width: base)
    monkeypatch.setattr("evomoe.paper.run_table.is_kept", lambda *known: True)
    planned = run_table("9", rows=["middle-evomoe"], results=tmp_path, dry_run=True).splitlines()
    assert planned[0] == "middle-evomoe (middle (Qwen-1.8B): evomoe): 1 seed" and planned[-1].startswith("7 tasks, ")


def test_the_documentation_s_table_can_be_run(base, world, tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
    (block,) = [block for block in text.split("```")[1::2] if "TABLES[" in block]
    monkeypatch.setitem(TABLES, "mine", None)  # so that the table is restored afterwards
    exec(block.removeprefix("python\n"), {})
    monkeypatch.setattr(mini, "folder", lambda seed, stage2=0: world)
    monkeypatch.setattr(base_model, "folder", lambda width: base)
    assert run_table("mine", study=tmp_path, dry_run=True).splitlines() == [
        "linear (a linear router): 1 seed",
        "shuffled (the same, shuffled): 1 seed",
        "8 tasks, 8 to be run: 2 trainings, 6 scorings",
    ]


@pytest.mark.parametrize("option", ["study", "results"])
def test_a_file_where_a_folder_is_to_be_is_told_at_once(tmp_path, option):
    (tmp_path / "file").write_text("")
    for name in ("file", "file/within"):
        with pytest.raises(OptionError, match=f"^{option}: .*file is a file; name a folder"):
            run_table("4", dry_run=True, **{option: tmp_path / name})


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"rows": []}', '{"rows": {}, "experts": 3}'])
def test_results_that_could_not_be_joined_are_told_before_anything_is_run(tmp_path, text):
    """Otherwise hours later, when the numbers are there."""
    (tmp_path / "table4.json").write_text(text)
    with pytest.raises(ValueError, match="table4.json"):
        run_table("4", dry_run=True, results=tmp_path)
    assert (tmp_path / "table4.json").read_text() == text
