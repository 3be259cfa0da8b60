"""``evomoe plot``: every figure of the paper as pictures with their numbers, and what it refuses."""

import json
import sys

import pytest
import torch
from tiny import make_llava

from evomoe import upcycle
from evomoe.cli import main
from evomoe.evaluation.average import mean_score
from evomoe.loading import load_processor
from evomoe.paper import FIGURES
from evomoe.paper.figure_1a import PUBLISHED, read_scores

TINY = {"expert_init": "noise", "init_options": {"std": 0.1}}


@pytest.fixture
def sparse(workspace):
    """The workspace with two sparse models beside its dense one."""
    pytest.importorskip("matplotlib")
    for name, options in (("linear", {"router": "linear"}), ("dtr", {"router_options": {"hypernet_width": 4, "rank": 2}})):
        torch.manual_seed(0)
        upcycle(make_llava(), **TINY, **options).save_pretrained(workspace / name)
        load_processor(workspace / "model").save_pretrained(workspace / name)
    return workspace


def arguments(workspace, figure: str, *more: str) -> list[str]:
    return ["plot", figure, str(workspace / "linear"), "--output", str(workspace / "out"), *more]


def with_data(workspace, figure: str, *more: str) -> list[str]:
    return arguments(workspace, figure, "--data", str(workspace / "data.json"), "--image-root", str(workspace / "images"), *more)


@pytest.mark.parametrize("figure", ["1b", "5"])
def test_a_figure_of_two_checkpoints_on_a_probe(sparse, figure, capsys):
    assert main(with_data(sparse, figure, "--against", str(sparse / "dtr"), "--records", "12")) == 0
    out = capsys.readouterr().out
    for suffix in ("png", "svg", "json"):
        path = sparse / "out" / f"figure_{figure}.{suffix}"
        assert path.stat().st_size > 1000 and str(path) in out
    known = json.loads((sparse / "out" / f"figure_{figure}.json").read_text())
    assert known["probe"].startswith("12 of the 24 records of ") and "no number is given" in known["published"]
    assert list(known["models"]) == ["linear", "dtr"] and known["models"]["dtr"]["checkpoint"] == str(sparse / "dtr")
    for model in known["models"].values():
        assert len(model["layers"]["0"]["load"]["image"]) == 4 and 0 <= model["mean"]["logit_overlap"] <= 1
    svg = (sparse / "out" / f"figure_{figure}.svg").read_text()
    assert "linear" in svg and "dtr" in svg and "text tokens" in svg


def test_figure_1a_scores_and_draws(sparse, capsys):
    pytest.importorskip("easy_vqa")
    assert main(arguments(sparse, "1a", "--limit", "6", "--names", "MoE-tuning")) == 0
    out = capsys.readouterr().out
    known = json.loads((sparse / "out" / "figure_1a.json").read_text())
    (scores,) = known["scores"].values()
    assert list(known["scores"]) == [str(sparse / "linear")] and scores["name"] == "MoE-tuning"
    assert len(scores["shuffled"]) == 8 and known["score"] == "easy-vqa" and known["limit"] == 6
    assert f"MoE-tuning {sum(scores['shuffled']) / 8 - scores['own']:+.2f} (paper, MoE-tuning: -0.11)" in out
    assert "MoE-tuning" in (sparse / "out" / "figure_1a.svg").read_text()


def test_figure_1a_takes_scores_that_are_known(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("evomoe.paper.figure_1a.load_sparse", lambda *args: pytest.fail("scored anew"))
    scores = {"runs/a": {"own": 60.0, "shuffled": [50.0, 58.0]}, "runs/b": {"own": 65.5, "shuffled": [65.0, 66.0]}}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    command = [
        "plot",
        "1a",
        "runs/a",
        "--against",
        "runs/b",
        "--scores",
        str(tmp_path / "scores.json"),
        "--output",
        str(tmp_path),
    ]
    assert main(command) == 0
    assert "a -6.00; b +0.00" in capsys.readouterr().out
    again = [*command[:-3], str(tmp_path / "figure_1a.json"), "--output", str(tmp_path / "again")]
    assert main(again) == 0  # the figure's own file will do
    first, second = (json.loads((folder / "figure_1a.json").read_text()) for folder in (tmp_path, tmp_path / "again"))
    assert first == second and first["score"] == "score"


def test_scores_of_other_benchmarks_are_not_drawn_beside_new_ones(tmp_path, sparse, capsys):
    known = {"score": "mini-pope", "scores": {"runs/a": {"own": 60.0, "shuffled": [50.0]}}}
    (tmp_path / "scores.json").write_text(json.dumps(known))
    assert main(arguments(sparse, "1a", "--against", "runs/a", "--scores", str(tmp_path / "scores.json"))) == 1
    assert "holds mini-pope, and linear would be scored as easy-vqa." in capsys.readouterr().err


def test_the_published_shuffles_are_table_10_s_averages():
    assert PUBLISHED.own == 65.5 and len(PUBLISHED.shuffled) == 8 and PUBLISHED.mean_change() == pytest.approx(-0.1125)


def test_a_mean_of_benchmarks_takes_a_twentieth_of_mme():
    assert mean_score({"pope": 80.0, "mme": 1200.0}) == 70 and mean_score({"mini-mme": 1000.0}) == 50


def test_every_figure_has_a_module_that_claims_it():
    from importlib import import_module

    for name, module in FIGURES.items():
        number, part = name.rstrip("ab"), name.lstrip("15")
        assert f"Implements: Figure {number}{f' ({part})' if part else ''}." in (import_module(module).__doc__ or "")


def test_what_cannot_be_drawn_is_refused_in_one_sentence(sparse, capsys):
    scores = sparse / "scores.json"
    scores.write_text('{"a": {"own": "x"}}')
    for command, message in (
        (arguments(sparse, "5"), "--data: name the records to look at"),
        (with_data(sparse, "1b", "--against", str(sparse / "model")), "model is a dense model and has no routers"),
        (with_data(sparse, "1b", "--against", "./nothing"), "./nothing: there is no such folder."),
        (with_data(sparse, "1b", "--names", "a", "b"), "--names: give each of the 1 checkpoints one name of its own."),
        (arguments(sparse, "1a", "--benchmarks", "vqa"), "benchmarks: there is no 'vqa'"),
        (arguments(sparse, "1a", "--scores", "none.json"), "--scores: there is no file none.json."),
        (arguments(sparse, "1a", "--scores", str(scores)), 'scores.json does not hold {checkpoint: {"own": 65.5'),
    ):
        assert main(command) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    assert not (sparse / "out").exists()


def test_a_checkpoint_without_known_scores_must_be_there(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    (tmp_path / "scores.json").write_text("{}")
    assert main(["plot", "1a", "./nothing", "--scores", str(tmp_path / "scores.json"), "--output", str(tmp_path)]) == 1
    assert "./nothing: there is no such folder." in capsys.readouterr().err
    assert read_scores(tmp_path / "scores.json") == ("", {})


def test_without_matplotlib_nothing_is_loaded(sparse, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for module in ("figure_1a", "drawing"):
        monkeypatch.setattr(f"evomoe.paper.{module}.load_sparse", lambda *args: pytest.fail("loaded"))
    for command in (with_data(sparse, "1b"), arguments(sparse, "1a")):
        assert main(command) == 1
        assert capsys.readouterr().err == "evomoe: Pictures need matplotlib: pip install 'evomoe[plots]'.\n"
