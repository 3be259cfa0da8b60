"""What is measured on experts and routers, against answers that are known."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny import inputs_for, make_llava
from torch import nn

from evomoe import upcycle
from evomoe.accounting import ParameterCounts
from evomoe.analysis.interventions import only_expert, replaced_routers, shuffled_routers
from evomoe.analysis.plots import plot_distances, plot_load, plot_logits
from evomoe.analysis.report import ReportInput, write_report
from evomoe.analysis.routing import RoutingStatistics, output_cka, routing_statistics
from evomoe.recipe import Recipe
from evomoe.routers.base import Router
from evomoe.structure import decoder_layers

NOISE = {"expert_init": "noise", "init_options": {"std": 0.1}}


def random_outputs(count: int = 3, T: int = 400, D: int = 8, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(T, D, generator=generator) for _ in range(count)]


def test_cka_of_copies_is_1():
    (out_TD,) = random_outputs(1)
    torch.testing.assert_close(output_cka([out_TD] * 3), torch.ones(3, 3, dtype=torch.float64))


def test_cka_of_independent_outputs_is_low():
    cka_EE = output_cka(random_outputs(3))
    torch.testing.assert_close(cka_EE.diagonal(), torch.ones(3, dtype=torch.float64))
    assert cka_EE[~torch.eye(3, dtype=torch.bool)].max() < 0.1
    torch.testing.assert_close(cka_EE, cka_EE.T)


def test_cka_ignores_rotation_scale_and_shift_but_not_a_stretch():
    (out_TD,) = random_outputs(1)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))[0]
    moved = 3.0 * out_TD @ rotation + 7.0
    assert output_cka([out_TD, moved])[0, 1].item() == pytest.approx(1, abs=1e-5)
    stretched = out_TD * torch.tensor([30.0] + [1.0] * 7)
    assert output_cka([out_TD, stretched])[0, 1] < 0.6


def test_cka_by_hand():
    """One feature each: CKA is the squared correlation."""
    a, b = torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.tensor([[1.0], [3.0], [2.0], [4.0]])
    assert output_cka([a, b])[0, 1].item() == pytest.approx(0.8**2)


def test_cka_of_an_output_that_does_not_vary_is_no_number():
    varied, rounding = random_outputs(2)
    cka_EE = output_cka([varied, 0.1 + 2e-8 * rounding, varied * 2])
    assert cka_EE[1].isnan().all() and cka_EE[:, 1].isnan().all() and cka_EE[0, 2].item() == pytest.approx(1)
    load_LE = torch.full((2, 3), 1 / 3)
    nothing = torch.full((3, 3), torch.nan)
    statistics = RoutingStatistics([0, 2], load_LE.expand(2, 2, -1), load_LE, [], torch.stack([cka_EE, nothing.double()]))
    layer, without = statistics.layer_cka()
    assert layer == pytest.approx(1) and math.isnan(without) and statistics.mean_cka() == pytest.approx(1)


def measure(model, batches=None, **options) -> RoutingStatistics:
    return routing_statistics(model, [inputs_for(model, (1, 0, 2))] if batches is None else batches, **options)


@pytest.mark.parametrize("top_k", [1, 2])
def test_loads_add_up_per_modality_and_over_all_tokens(llava, top_k):
    statistics = measure(upcycle(llava, num_experts_per_tok=top_k, moe_layers=[1, 3], **NOISE))
    assert statistics.layers == [1, 3] and statistics.load_LME.shape == (2, 2, 4)
    torch.testing.assert_close(statistics.load_LME.sum(-1), torch.ones(2, 2, dtype=torch.float64))
    torch.testing.assert_close(statistics.total_load_LE.sum(-1), torch.ones(2, dtype=torch.float64))
    for shares in statistics.expert_load().values():
        assert len(shares) == 4 and sum(shares) == pytest.approx(1)


class ByPosition(Router):
    """A router with known answers: expert 0 for text, experts 1 and 2 in turn for image tokens."""

    def forward(self, x_TD, modality):
        expert_T = torch.where(modality.is_image_T, 1 + torch.arange(x_TD.shape[0]) % 2, 0)
        return 10.0 * nn.functional.one_hot(expert_T, self.num_experts).float()


def test_loads_by_hand(llava):
    sparse = upcycle(llava, **NOISE)
    with replaced_routers(sparse, lambda router, layer: ByPosition(router.hidden_size, router.num_experts)):
        statistics = measure(sparse, [inputs_for(sparse, (1, 0))])  # 4 image, 6 + 7 text tokens
    expected = torch.tensor([[1, 0, 0, 0], [0, 0.5, 0.5, 0]], dtype=torch.float64)
    torch.testing.assert_close(statistics.load_LME, expected.expand(2, 2, 4))
    torch.testing.assert_close(statistics.total_load_LE, torch.tensor([[13, 2, 2, 0]] * 2, dtype=torch.float64) / 17)
    assert statistics.expert_load() == {"text": [1, 0, 0, 0], "image": [0, 0.5, 0.5, 0]}
    for by_modality in statistics.logits:
        assert {name: len(values) for name, values in by_modality.items()} == {"text": 13, "image": 4}
        assert by_modality["text"][:, 0].eq(10).all() and by_modality["image"][:, 0].eq(0).all()


@pytest.mark.parametrize("padding", ["left", "right"])
def test_padding_counts_nowhere(llava, padding):
    sparse = upcycle(llava, **NOISE)
    together = measure(sparse, [inputs_for(sparse, (1, 0, 2), padding=padding)])
    batch, alone, first = inputs_for(sparse, (1, 0, 2), padding=padding), [], 0
    for i, images in enumerate((1, 0, 2)):
        real = batch["attention_mask"][i].bool()
        pixels = {"pixel_values": batch["pixel_values"][first : first + images]} if images else {}
        alone.append({"input_ids": batch["input_ids"][i][real][None], **pixels})
        first += images
    one_by_one = measure(sparse, alone)
    torch.testing.assert_close(together.load_LME, one_by_one.load_LME)
    torch.testing.assert_close(together.total_load_LE, one_by_one.total_load_LE)
    assert [len(values) for values in together.logits[0].values()] == [len(values) for values in one_by_one.logits[0].values()]
    torch.testing.assert_close(together.cka_LEE, one_by_one.cka_LEE, atol=1e-4, rtol=1e-4)


def test_a_fixed_router_loads_one_expert(llava):
    statistics = measure(upcycle(llava, router="fixed", router_options={"expert": 2}))
    assert statistics.load_LME[..., 2].eq(1).all() and statistics.load_LME.sum() == 4
    assert statistics.effective_experts() == pytest.approx([1, 1])


def test_the_effective_number_of_experts_is_E_when_all_do_the_same():
    def of(load_E):
        load_LE = torch.tensor([load_E], dtype=torch.float64)
        return RoutingStatistics([0], load_LE.expand(1, 2, -1), load_LE, [], torch.zeros(1)).effective_experts()

    assert (
        of([0.25] * 4) == pytest.approx([4]) and of([0.5, 0.5, 0, 0]) == pytest.approx([2]) and of([0, 1.0]) == pytest.approx([1])
    )


def test_copied_experts_have_cka_1_and_other_experts_less(llava):
    other = upcycle(make_llava(), expert_init="drop_upcycling", init_options={"ratio": 1.0})
    assert measure(upcycle(llava)).mean_cka() == pytest.approx(1)
    assert measure(other).mean_cka() < 0.9


def test_measuring_leaves_the_model_in_its_mode_and_needs_a_batch(llava):
    sparse = upcycle(llava, expert_dropout=0.5, **NOISE).train()
    first, again = measure(sparse), measure(sparse)
    assert sparse.training and torch.equal(first.load_LME, again.load_LME)
    measure(sparse.eval())
    assert not sparse.training
    with pytest.raises(ValueError, match="at least one batch"):
        measure(sparse, [])


def test_samples_are_limited_and_drawn_by_the_seed(llava):
    sparse = upcycle(llava, **NOISE)
    batches = [inputs_for(sparse, (0, 0)), inputs_for(sparse, (0, 0, 0))]  # words only
    small = [measure(sparse, batches, max_tokens=5, seed=seed).logits[0] for seed in (0, 0, 1)]
    assert all(len(values["text"]) == 5 and len(values["image"]) == 0 for values in small)
    assert torch.equal(small[0]["text"], small[1]["text"]) and not torch.equal(small[0]["text"], small[2]["text"])


@pytest.mark.parametrize("replaced", [lambda m: only_expert(m, 1), lambda m: shuffled_routers(m, 3)], ids=["only", "shuffled"])
def test_routers_are_put_back_also_after_an_error(llava, replaced):
    sparse = upcycle(llava, **NOISE)
    own = {layer: block.router for layer, block in sparse.moe_blocks.items()}
    with replaced(sparse) as model:
        assert model is sparse and all(block.router is not own[layer] for layer, block in sparse.moe_blocks.items())
    with pytest.raises(RuntimeError, match="stop"), replaced(sparse):
        raise RuntimeError("stop")
    with pytest.raises(ValueError, match="expert 9 does not exist"), only_expert(sparse, 9):
        pass
    assert all(block.router is own[layer] for layer, block in sparse.moe_blocks.items())


@pytest.mark.parametrize("gate", ["straight_through", "probability"])
@pytest.mark.parametrize("expert", [0, 3])
def test_one_expert_alone_equals_the_dense_model_with_its_ffn(llava, gate, expert):
    dense, inputs = copy.deepcopy(llava), inputs_for(llava)
    sparse = upcycle(llava, gate=gate, **NOISE)
    for index, block in sparse.moe_blocks.items():
        decoder_layers(dense)[index].mlp = block.experts[expert]
    real = inputs["attention_mask"].bool()
    with only_expert(sparse, expert):
        alone = sparse(**inputs).logits[real]
    torch.testing.assert_close(alone, dense(**inputs).logits[real], atol=1e-5, rtol=0)
    with only_expert(sparse, 1):
        assert not torch.allclose(sparse(**inputs).logits[real], alone, atol=1e-3)


def test_a_shuffle_permutes_each_layer_s_logits(llava):
    sparse = upcycle(llava, **NOISE)
    inputs = inputs_for(sparse)
    before = sparse(**inputs, output_router_logits=True).router_logits[0]
    with shuffled_routers(sparse, 1):
        after = sparse(**inputs, output_router_logits=True).router_logits[0]
        permutations = [block.router.permutation for block in sparse.moe_blocks.values()]
    assert torch.equal(after, before[:, permutations[0]]) and not torch.equal(after, before)
    with shuffled_routers(sparse, 2):
        assert [block.router.permutation for block in sparse.moe_blocks.values()] != permutations


def test_a_shuffle_does_not_matter_to_copied_experts(llava):
    sparse = upcycle(llava)
    inputs = inputs_for(sparse)
    before = sparse(**inputs).logits
    with shuffled_routers(sparse, 1):
        torch.testing.assert_close(sparse(**inputs).logits, before, atol=1e-5, rtol=0)


def some_statistics(L: int, E: int, constant: bool = False) -> RoutingStatistics:
    generator = torch.Generator().manual_seed(0)
    load_LME = torch.rand(L, 2, E, generator=generator, dtype=torch.float64)
    load_LME /= load_LME.sum(-1, keepdim=True)

    def logits(shift: float, count: int) -> torch.Tensor:
        return torch.full((count, E), shift) if constant else torch.randn(count, E, generator=generator) + shift

    sample = [{"text": logits(0, 50), "image": logits(2, 80)} for _ in range(L)]
    return RoutingStatistics(list(range(0, 2 * L, 2)), load_LME, load_LME.mean(1), sample, torch.eye(E).expand(L, E, E))


def coloured(path) -> float:
    """The share of a picture's pixels that are neither white nor black nor grey: frames and letters are none."""
    with Image.open(path) as picture:
        assert min(picture.size) > 100 and picture.format == "PNG"
        rgb = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8).view(-1, 3).int()
        return ((rgb.amax(1) - rgb.amin(1)) > 30).float().mean().item()


@pytest.mark.parametrize(("L", "E"), [(1, 2), (4, 3)])
def test_pictures_of_load_and_logits(tmp_path, L, E):
    pytest.importorskip("matplotlib")
    plot_load(some_statistics(L, E), tmp_path / "load.png")
    plot_logits(some_statistics(L, E), tmp_path / "logits.png")
    assert coloured(tmp_path / "load.png") > 0.3 and coloured(tmp_path / "logits.png") > 0.05


def test_constant_logits_and_an_absent_modality_can_be_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    constant = some_statistics(2, 3, constant=True)
    plot_logits(constant, tmp_path / "constant.png")
    text_only = replace(constant, logits=[{"text": torch.randn(9, 3), "image": torch.zeros(0, 3)} for _ in range(2)])
    plot_logits(text_only, tmp_path / "text.png")
    assert coloured(tmp_path / "constant.png") < 0.01 and coloured(tmp_path / "text.png") > 0.03


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, kept open."""
    pytest.importorskip("matplotlib")
    drawn = []
    monkeypatch.setattr("evomoe.analysis.plots._save", lambda figure, path: drawn.append(figure))
    return drawn


def test_a_few_logits_far_out_do_not_squeeze_the_others(figures, tmp_path):
    statistics = some_statistics(2, 3)
    statistics.logits[0]["text"] = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    statistics.logits[0]["text"][0] = 1e4
    statistics.logits[1]["image"] += 100
    plot_logits(statistics, tmp_path / "logits.png")
    first, second = figures[0].axes[:3], figures[0].axes[3:6]
    assert len({axis.get_xlim() for axis in first}) == len({axis.get_xlim() for axis in second}) == 1
    assert -5 < first[0].get_xlim()[0] < first[0].get_xlim()[1] < 6 and second[0].get_xlim()[1] > 100
    peak = first[0].get_lines()[0].get_ydata().max()
    assert peak == pytest.approx(0.4, abs=0.1)  # a standard normal's, not one smeared by the outlier
    assert "percentile" in figures[0].get_supxlabel() and figures[0].get_suptitle() and figures[0].get_supylabel()


def test_an_expert_has_the_same_colour_in_every_picture(figures, tmp_path):
    plot_load(some_statistics(2, 3), tmp_path / "load.png")
    plot_logits(some_statistics(2, 3), tmp_path / "logits.png")
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
    path = write_report(tmp_path, recipe, given)
    text = path.read_text()
    for part in (
        "A note.", "Model `the-model`, data `the-data`, seed 0", "| scores |", "1,234,567", "1,240,000", "12.5", "expert3", "0.5",
        "Measured on the probe.", "| text tokens", "| image tokens", "layer 2", "effective number of experts",
        "![expert load](expert_load.png)", "![router logits](router_logits.png)", "(distances.png)",
    ):  # fmt: skip
        assert part in text, part
    for picture in ("expert_load.png", "router_logits.png", "distances.png"):
        assert coloured(tmp_path / picture) > 0.002
    for explained in ("0 is a copy of expert 1", "near 1 is bad", "lower is better", "docs/concepts.md"):
        assert explained in text
    tables = [block for block in text.split("\n\n") if block.startswith("| ") and "\n" in block]
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert len(tables) >= 4


@pytest.mark.parametrize(
    ("losses", "alarm"),
    [
        ([2.0, 1.0], None), ([2.0, 2.5], "Stage 2 (evolution) ended at a higher loss (2.5) than it began with (2)"),
        ([2.0, math.nan], "Stage 2 (evolution) has losses or gradients that are not finite"),
    ],
)  # fmt: skip
def test_a_stage_that_did_not_learn_is_called_out_first(tmp_path, losses, alarm):
    lines = [{"stage": "evolution", "step": step, "loss": loss, "grad_norm": 1.0} for step, loss in enumerate(losses)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = write_report(tmp_path, Recipe("m", "d", "o"), ReportInput({}, None, "", notes="A note.")).read_text()
    assert (alarm is None) is ("--stage2.learning-rate" not in text)
    assert alarm is None or text.index(alarm) < text.index("A note.")


def test_gradients_that_are_not_finite_are_called_out_though_the_trainer_filters_the_losses(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"stage": "routing", "step": 1, "loss": 0.0, "grad_norm": NaN}\n')
    assert (
        "Stage 3 (routing) has losses or gradients"
        in write_report(tmp_path, Recipe("m", "d", "o"), ReportInput({}, None, "")).read_text()
    )


def test_a_report_of_a_dense_run_has_no_routing(tmp_path):
    text = write_report(tmp_path, Recipe("m", "d", "o", stages=(1,)), ReportInput({}, None, "")).read_text()
    assert "## Routing" not in text and "Evolution rule" not in text and "experts" not in text
