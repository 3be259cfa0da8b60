"""``evomoe plot``: every figure of the paper as pictures with their numbers, and what it refuses."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny import IMAGE_TOKEN, make_language_model, make_llava

from evomoe import upcycle
from evomoe.analysis.analyze import open_probe
from evomoe.analysis.experts_per_token import split_by_place
from evomoe.cli import main
from evomoe.evaluation.average import mean_score
from evomoe.model.loading import load_processor
from evomoe.paper.figures import FIGURES
from evomoe.paper.figures.figure_1a import PUBLISHED, read_scores, score_shuffles
from evomoe.paper.figures.figure_options import FigureOptions
from evomoe.paper.tables.experts_curve import against_fixed, point

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


def test_a_figure_without_an_output_goes_to_a_folder_of_the_checkpoint_s_name(sparse, monkeypatch):
    monkeypatch.chdir(sparse)
    for checkpoint in ("linear", "dtr"):
        command = ["plot", "5", checkpoint, "--data", "data.json", "--image-root", "images", "--records", "12"]
        assert main(command) == 0
    assert len([*(sparse / "runs" / "plot").glob("*-linear/figure_5.png")]) == 1
    assert len([*(sparse / "runs" / "plot").glob("*-dtr/figure_5.png")]) == 1


def test_experts_per_token_stand_where_the_tokens_are(sparse, capsys):
    options = {"num_experts": 16, "num_experts_per_tok": 8, "router_options": {"importance_width": 4}}
    model = upcycle(make_llava(), expert_init="partition", router="anyexperts", **options)
    for block in model.moe_blocks.values():
        torch.nn.init.normal_(block.router.importance.outer.weight, std=3.0)
    model.save_pretrained(sparse / "linear")  # where arguments() looks
    assert main(with_data(sparse, "slots", "--records", "24")) == 0
    assert "figure_slots.png" in capsys.readouterr().out and (sparse / "out/figure_slots.svg").stat().st_size > 1000
    (known,) = json.loads((sparse / "out/figure_slots.json").read_text())["models"].values()
    assert len(known["questions"]) == 6 and known["probe"].startswith("all 24 records")
    probe = open_probe(str(sparse / "linear"), model.config, FigureOptions(str(sparse / "data.json"), str(sparse / "images")))
    item = next(item for item, _ in probe.with_one_picture(1))
    with torch.no_grad():
        inputs = {name: value.unsqueeze(0) if value.ndim == 1 else value for name, value in item.items() if name != "labels"}
        records = model.eval()(**inputs, output_router_logits=True).records
    expected = sum((record.routing.index_TK < 16).sum(-1) for record in records.values()) / len(records)
    shown, is_image = known["questions"][0], item["input_ids"] == IMAGE_TOKEN
    assert sum(shown["patches"], []) == pytest.approx(expected[is_image].tolist()) and len(shown["patches"]) == 2
    assert [value for _, value in shown["words"]] == pytest.approx(expected[~is_image].tolist())
    assert "".join(word for word, _ in shown["words"]).replace(" ", "") == load_processor(sparse / "linear").tokenizer.decode(
        item["input_ids"][~is_image]
    ).replace(" ", "")
    assert expected.unique().numel() > 2


def test_slots_of_benchmark_questions(sparse, capsys):
    pytest.importorskip("easy_vqa")
    options = {"num_experts": 16, "num_experts_per_tok": 8, "router_options": {"importance_width": 4}}
    upcycle(make_llava(), expert_init="partition", router="anyexperts", **options).save_pretrained(sparse / "linear")
    assert main(arguments(sparse, "slots", "--benchmarks", "easy-vqa", "--limit", "2")) == 0
    (known,) = json.loads((sparse / "out/figure_slots.json").read_text())["models"].values()
    assert known["probe"] == "questions of easy-vqa" and len(known["questions"]) == 6  # as many as there is room for
    assert all(len(question["patches"]) == 2 and question["words"] for question in known["questions"])
    questions = ["".join(word for word, _ in question["words"]) for question in known["questions"]]
    assert len(set(questions)) > 3 and all("?" in question for question in questions)


def test_image_tokens_lie_row_by_row_in_the_picture_s_grid():
    ids_T = torch.tensor([1, *[7] * 16, 2])
    values_T = torch.arange(18.0)
    square, wide, merged = (
        split_by_place(values_T, ids_T, [7], str, {"image_grid_thw": torch.tensor([[1, *grid]])} if grid else {})
        for grid in (None, (2, 8), (4, 16))
    )
    assert square.patches_HW.tolist() == values_T[1:17].view(4, 4).tolist()
    assert wide.patches_HW.tolist() == merged.patches_HW.tolist() == values_T[1:17].view(2, 8).tolist()
    assert square.words == [("[1]", 0.0), ("[2]", 17.0)]


def test_a_point_of_the_curve_by_hand():
    seeds = [{"experts_per_token": {"mini-gqa": 4.0, "mini-mme": 6.0}, "scores": {"mini-gqa": 60.0, "mini-mme": 1000.0}},
             {"experts_per_token": {"mini-gqa": 5.0, "mini-mme": 7.0}, "scores": {"mini-gqa": 64.0, "mini-mme": 1000.0}}]  # fmt: skip
    found = point({"seeds": dict(enumerate(seeds))}, ["mini-gqa", "mini-mme"])
    assert found == pytest.approx((5.5, 56.0, 2**0.5))  # scores 55 and 57


def test_rows_beside_a_fixed_top_k_with_as_many_experts():
    def row(**points):
        return {
            "seeds": {
                seed[1:]: {
                    "experts_per_token": {"gqa": k - 1, "sqa": k + 1, "pope": k},
                    "scores": {"gqa": v - 5, "sqa": v + 5, "pope": 2 * v},
                }
                for seed, (k, v) in points.items()
            }
        }

    known = {
        "top8": row(s0=(8, 60.0), s1=(8, 70.0)),
        "top8-at7": row(s0=(7, 50.0), s1=(7, 68.0)),
        "top8-at5": row(s0=(5, 20.0)),
        "any8": row(s0=(8.15, 99.0), s1=(8.15, 99.0)),  # more than any fixed one
        "any8-at8": row(s0=(8.02, 61.0), s1=(7.5, 71.0)),
        "top5": row(s0=(5, 30.0), s1=(5.5, 30.0)),  # of seed 1 nothing fixed is so small
        "batch": row(s2=(6, 30.0)),
    }
    groups = {"both": ("gqa", "sqa"), "one": ("pope",)}
    header, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in against_fixed({"rows": known}, groups).splitlines()[2:]
    ]
    assert header == ["row", "real experts", "both", "one"]
    assert lines == [
        ["any8-at8", "7.76", "+1.50 [-4.85, +7.85]", "+3.00 [-9.71, +15.71]"],
        ["top5", "5.25", "+10.00", "+20.00"],
    ]
    assert against_fixed({"rows": {"top8": known["top8"], "any8": known["any8"]}}, groups) == ""


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


def test_figure_1a_s_bars_are_the_scores_of_the_model_and_of_each_shuffle(sparse, monkeypatch):
    pytest.importorskip("easy_vqa")
    given = []

    def score(model, *asked) -> SimpleNamespace:
        router = next(iter(model.moe_blocks.values())).router
        given.append(type(router).__name__)
        return SimpleNamespace(score=10.0 * len(given))

    monkeypatch.setattr("evomoe.paper.figures.figure_1a.evaluate", score)
    options = FigureOptions(benchmarks=("easy-vqa",), limit=2)
    scores = score_shuffles(str(sparse / "linear"), "a", options)
    assert scores.own == 10.0 and list(scores.shuffled) == [10.0 * n for n in range(2, 10)]
    assert given == ["LinearRouter"] + ["ShuffledRouter"] * 8


def test_figure_1a_takes_scores_that_are_known(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("evomoe.paper.figures.figure_1a.load_sparse", lambda *args: pytest.fail("scored anew"))
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
        if not name[0].isdigit():
            continue  # a figure of our own
        number, part = name.rstrip("ab"), name.lstrip("15")
        assert f"Implements: Figure {number}{f' ({part})' if part else ''}." in (import_module(module).__doc__ or "")


def test_what_cannot_be_drawn_is_refused_in_one_sentence(sparse, capsys):
    scores = sparse / "scores.json"
    scores.write_text('{"a": {"own": "x"}}')
    none = sparse / "none.json"
    none.write_text('{"a": {"own": 1, "shuffled": []}}')
    upcycle(make_language_model(), **TINY).save_pretrained(sparse / "words")
    for command, message in (
        (arguments(sparse, "5"), "--data: name the records to look at"),
        (with_data(sparse, "1b", "--against", str(sparse / "model")), "model is a dense model and has no routers"),
        (with_data(sparse, "1b", "--against", "./nothing"), "./nothing: there is no such folder."),
        (with_data(sparse, "1b", "--names", "a", "b"), "--names: give each of the 1 checkpoints one name of its own."),
        (arguments(sparse, "1a", "--benchmarks", "vqa"), "benchmarks: there is no 'vqa'"),
        (arguments(sparse, "1a", "--scores", "none.json"), "--scores: there is no file none.json."),
        (arguments(sparse, "1a", "--scores", str(scores)), 'scores.json does not hold {checkpoint: {"own": 65.5'),
        (arguments(sparse, "1a", "--scores", str(none)), 'none.json does not hold {checkpoint: {"own": 65.5'),
        ([*with_data(sparse, "1b"), "--output", str(scores)], f"--output: {scores} is a file; name a folder."),
        (
            with_data(sparse, "1b", "--against", str(sparse / "words")),
            "words is text-only, and this figure is about pictures too",
        ),
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
        monkeypatch.setattr(f"evomoe.paper.figures.{module}.load_sparse", lambda *args: pytest.fail("loaded"))
    for command in (with_data(sparse, "1b"), arguments(sparse, "1a")):
        assert main(command) == 1
        assert capsys.readouterr().err == "evomoe: Pictures need matplotlib: pip install 'evomoe[plots]'.\n"
