"""Reports and their pictures."""

import json
import math
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image

from evomoe.analysis.plots import ShuffleScores, plot_distances, plot_load, plot_logits, plot_shuffles
from evomoe.analysis.report import ReportInput, write_report
from evomoe.analysis.routing import RoutingStatistics
from evomoe.analysis.routing_report import routing_sections
from evomoe.model.accounting import ParameterCounts
from evomoe.recipe.options import MoEOptions
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.run_folder import RunFolder


def some_statistics(L: int, E: int, constant: bool = False) -> RoutingStatistics:
    generator = torch.Generator().manual_seed(0)
    load_LME = torch.rand(L, 2, E, generator=generator, dtype=torch.float64)
    load_LME /= load_LME.sum(-1, keepdim=True)

    def logits(shift: float, count: int) -> torch.Tensor:
        return torch.full((count, E), shift) if constant else torch.randn(count, E, generator=generator) + shift

    sample = [{"text": logits(0, 50), "image": logits(2, 80)} for _ in range(L)]
    counts_LME = (1000 * load_LME).round().long()
    alike = [torch.eye(E).expand(L, E, E) for _ in range(2)]
    return RoutingStatistics(list(range(0, 2 * L, 2)), counts_LME, torch.tensor([1000, 1000]), sample, *alike)


def test_of_many_experts_some_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    plot_logits({"": some_statistics(6, 20)}, tmp_path / "many.png", tmp_path / "many.svg")
    shown = (tmp_path / "many.svg").read_text()
    assert "expert 1<" in shown and "expert 20<" in shown and shown.count(">expert ") == 8 and shown.count(">layer ") == 4
    with Image.open(tmp_path / "many.png") as picture:
        assert picture.width < 2400


def coloured(path) -> float:
    """The share of a picture's pixels that are neither white nor black nor grey: frames and letters are none."""
    with Image.open(path) as picture:
        assert min(picture.size) > 100 and picture.format == "PNG"
        rgb = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8).view(-1, 3).int()
        return ((rgb.amax(1) - rgb.amin(1)) > 30).float().mean().item()


@pytest.mark.parametrize(("L", "E"), [(1, 2), (4, 3)])
def test_pictures_of_load_and_logits(tmp_path, L, E):
    pytest.importorskip("matplotlib")
    plot_load({"": some_statistics(L, E)}, tmp_path / "load.png")
    plot_logits({"": some_statistics(L, E)}, tmp_path / "logits.png")
    assert coloured(tmp_path / "load.png") > 0.3 and coloured(tmp_path / "logits.png") > 0.05


def test_constant_logits_and_an_absent_modality_can_be_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    constant = some_statistics(2, 3, constant=True)
    plot_logits({"": constant}, tmp_path / "constant.png")
    text_only = replace(constant, logits=[{"text": torch.randn(9, 3), "image": torch.zeros(0, 3)} for _ in range(2)])
    plot_logits({"": text_only}, tmp_path / "text.png")
    assert coloured(tmp_path / "constant.png") < 0.03 and coloured(tmp_path / "text.png") > 0.03


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, kept open."""
    pytest.importorskip("matplotlib")
    drawn = []
    monkeypatch.setattr("evomoe.analysis.plots._save", lambda figure, *paths: drawn.append(figure))
    return drawn


def test_a_few_logits_far_out_do_not_squeeze_the_others(figures, tmp_path):
    statistics = some_statistics(2, 3)
    statistics.logits[0]["text"] = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    statistics.logits[0]["text"][0] = 1e4
    statistics.logits[1]["image"] += 100
    plot_logits({"": statistics}, tmp_path / "logits.png")
    first, second = figures[0].axes[:3], figures[0].axes[3:6]
    assert len({axis.get_xlim() for axis in first}) == len({axis.get_xlim() for axis in second}) == 1
    assert -5 < first[0].get_xlim()[0] < first[0].get_xlim()[1] < 6 and second[0].get_xlim()[1] > 100
    x, y = first[0].get_lines()[0].get_data()
    wide = x[y > y.max() / 2]
    assert wide[-1] - wide[0] == pytest.approx(2.355, rel=0.2)  # a standard normal's, not one smeared by the outlier
    (legend,) = figures[0].legends
    assert "percentile" in legend.get_title().get_text()
    assert [text.get_text() for text in legend.get_texts()] == ["text tokens", "image tokens"]


def test_an_expert_has_the_same_colour_in_every_picture(figures, tmp_path):
    plot_load({"": some_statistics(2, 3)}, tmp_path / "load.png")
    plot_logits({"": some_statistics(2, 3)}, tmp_path / "logits.png")
    plot_distances(metrics_lines(), tmp_path / "distances.png")
    load, logits, distances = figures
    of_load = {handle.get_label(): handle.patches[0].get_facecolor() for handle in load.axes[0].containers}
    of_logits = {axis.get_title(): axis.title.get_color() for axis in logits.axes[:3]}
    of_distances = {line.get_label(): line.get_color() for line in distances.axes[0].get_lines()}
    for name in ("expert 2", "expert 3"):
        assert tuple(of_load[name]) == tuple(of_logits[name]) == tuple(of_distances[name])
    reference = distances.axes[0].get_lines()[-1]
    assert set(reference.get_ydata()) == {1} and "itself moved" in reference.get_label()
    assert distances.axes[0].get_ylim()[0] == 0


def metrics_lines(steps: int = 4) -> list[dict]:
    return [
        {"stage": "evolution", "step": s, "loss": 1.0, "distance/expert2": 0.1 * s, "distance/expert3": 0.2} for s in range(steps)
    ]


def test_a_picture_of_distances(tmp_path):
    pytest.importorskip("matplotlib")
    plot_distances([{"stage": "warmup", "step": 1, "loss": 2.0}, *metrics_lines()], tmp_path / "distances.png")
    assert coloured(tmp_path / "distances.png") > 0.002
    with pytest.raises(ValueError, match="not of a run with Stage II"):
        plot_distances([{"stage": "warmup", "step": 1, "loss": 2.0}], tmp_path / "none.png")


def test_models_stand_side_by_side_under_their_names(figures, tmp_path):
    named = {"linear": some_statistics(2, 3), "dtr": some_statistics(6, 2)}
    plot_load(named, tmp_path / "load.png")
    plot_logits(named, tmp_path / "logits.png")
    load, logits = figures
    assert [part.get_suptitle() for part in load.subfigs] == ["linear", "dtr"]
    assert [len(part.axes) for part in load.subfigs] == [2, 2]
    overlap = named["dtr"].overlap_LE
    assert logits.subfigs[1].get_suptitle() == f"dtr: mean overlap {overlap.mean():.2f}"
    assert [len(part.axes) for part in logits.subfigs] == [2 * 3, 4 * 2]  # of six layers, four
    rows = logits.subfigs[1].axes[::2]
    assert [axis.get_ylabel() for axis in rows] == ["layer 0", "layer 2", "layer 6", "layer 10"]
    assert [axis.texts[0].get_text() for axis in rows] == [f"{overlap[i, 0]:.2f}" for i in (0, 1, 3, 5)]


def test_bars_of_shuffles_carry_their_values(figures, tmp_path):
    plot_shuffles(
        {"linear": ShuffleScores(65.5, [65.0, 66.5]), "dtr": ShuffleScores(50.0, [40.0])}, tmp_path / "a.png", score="AVG"
    )
    first, second = (part.axes[0] for part in figures[0].subfigs)
    assert [text.get_text() for text in first.texts] == ["65.5", "65.0", "66.5"]
    assert [bar.get_height() for bar in second.patches] == [50, 40]
    assert (first.get_title(), second.get_title()) == ("mean change +0.25", "mean change -10.00") and first.get_ylabel() == "AVG"
    assert first.get_ylim() == second.get_ylim() and first.get_ylim()[0] == 0


def test_a_picture_is_written_in_every_format_asked_for_and_is_the_same_twice(tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("first", "second"):
        plot_load({"": some_statistics(2, 3)}, tmp_path / f"{name}.png", tmp_path / f"{name}.svg")
    assert (tmp_path / "first.svg").read_text() == (tmp_path / "second.svg").read_text()
    assert "<svg" in (tmp_path / "first.svg").read_text() and coloured(tmp_path / "first.png") > 0.3


def test_without_matplotlib_the_report_names_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    sections = routing_sections(tmp_path, some_statistics(1, 2))
    assert sections[-1] == "(router_logits.png: Pictures need matplotlib: pip install 'evomoe[plots]'.)"
    assert list(tmp_path.iterdir()) == []


def test_the_report_has_tables_and_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    recipe = Recipe("the-model", "the-data", str(tmp_path))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics_lines()))
    for stage, seconds in (("stage2_evolution", 12.5), ("stage3_routing", 7.0)):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "seconds.txt").write_text(f"{seconds}\n")
    diversity = {
        "rule": "ema", "stop_fraction": 1.0, "collapsed": ["expert3"], "relative_distance": {"expert2": 0.5, "expert3": 0.0},
        "by_layer": {"expert2": {"0": 0.5}, "expert3": {"0": 0.0}},
    }  # fmt: skip
    (tmp_path / "stage2_evolution" / "diversity.json").write_text(json.dumps(diversity))
    counts = {"dense": ParameterCounts(1234567, 1234567, 0, 5000), "sparse": ParameterCounts(2345678, 1240000, 999, 999)}
    given = ReportInput(counts, some_statistics(2, 3), "the probe", scores="| scores |", notes="A note.")
    path = write_report(RunFolder(tmp_path), recipe, given)
    text = path.read_text()
    for part in (
        "A note.", "Model `the-model`, data `the-data`, seed 0", "| scores |", "1,234,567", "1,240,000", "12.5", "expert3", "0.5",
        "Measured on the probe.", "| text tokens", "| image tokens", "layer 2", "effective number of real experts",
        "![expert load](expert_load.png)", "![router logits](router_logits.png)", "(distances.png)",
    ):  # fmt: skip
        assert part in text, part
    for picture in ("expert_load.png", "router_logits.png", "distances.png"):
        assert coloured(tmp_path / picture) > 0.002
    for explained in ("0 is a copy of expert 1", "near 1 is bad", "lower is more diverse", "docs/concepts.md"):
        assert explained in text
    tables = [block for block in text.split("\n\n") if block.startswith("| ") and "\n" in block]
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert len(tables) >= 4


@pytest.mark.parametrize(
    ("losses", "alarm"),
    [
        ([2.0, 1.0], None), ([1.0, 2.0], None), ([1.0, 1.1, 1.2] * 3, None), ([1.0] * 6 + [1.0001] * 6, None),
        ([2.0, 1.9] * 3 + [2.5, 2.6] * 3, "ended at a higher loss than it began with: 2.56 ± 0.055 after 1.96 ± 0.055"),
        ([2.0, 1.0, 1.5, 1.8] * 10, None), ([2.0, 1.0, 1.5, 1.8] * 10 + [2.2], None), ([2.0, 1.0] * 10 + [3.0, 4.0] * 10, "ended at a higher"),
        ([2.0, math.nan], "Stage 2 (evolution) has losses or gradients that are not finite"),
    ],
)  # fmt: skip
def test_a_stage_that_did_not_learn_is_called_out_first(tmp_path, losses, alarm):
    lines = [{"stage": "evolution", "step": step, "loss": loss, "grad_norm": 1.0} for step, loss in enumerate(losses)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = write_report(RunFolder(tmp_path), Recipe("m", "d", "o"), ReportInput({}, None, "", notes="A note.")).read_text()
    assert (alarm is None) is ("`stage2.learning_rate`" not in text)
    assert alarm is None or text.index(alarm) < text.index("A note.")


def test_gradients_that_are_not_finite_are_called_out_though_the_trainer_filters_the_losses(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"stage": "routing", "step": 1, "loss": 0.0, "grad_norm": NaN}\n')
    assert (
        "Stage 3 (routing) has losses or gradients"
        in write_report(RunFolder(tmp_path), Recipe("m", "d", "o"), ReportInput({}, None, "")).read_text()
    )


def test_a_report_of_a_dense_run_has_no_routing(tmp_path):
    text = write_report(RunFolder(tmp_path), Recipe("m", "d", "o", stages=(1,)), ReportInput({}, None, "")).read_text()
    assert "## Routing" not in text and "Evolution rule" not in text and "experts" not in text


def test_a_report_says_how_the_loss_went_and_what_was_left_out(tmp_path):
    run = RunFolder(str(tmp_path))
    lines = [
        {"stage": "routing", "step": n, "loss": 2.0 - n / 100, "aux/z": 1000.0, "aux/balance": 100.0, "largest_score": 250.0}
        for n in range(100)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run.skipped_records.write_text("one\ntwo\n")
    run.stage(3).seconds.parent.mkdir()
    run.stage(3).seconds.write_text("12.5\n")
    recipe = Recipe(model="m", data="d", output=str(tmp_path), stages=(3,), moe=MoEOptions(router_options={"rank": 4}))
    write_report(run, recipe, ReportInput({}, None, ""))
    text = run.report.read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("| 3 (routing)")]
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["3 (routing)", "1.955", "1.055", "0.2", "12.5"]
    assert "**The routers' scores have reached 250.**" in text and "`router_options.cap=30`" in text
    assert "2 bad records left out; skipped_records.txt has the reasons." in text
    assert "router dtr (rank 4), gate straight_through" in text
