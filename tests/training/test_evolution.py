"""Expert evolution against hand-computed numbers, through checkpoints and across processes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from evomoe.recipe.options import EvolutionOptions
from evomoe.training.collapse import StartOfStage2, check_not_collapsed, diversity_report, relative_distances
from evomoe.training.evolution import RULES, ExpertEvolution


def fixed(*betas: float) -> tuple[tuple[float, float], ...]:
    return tuple((b, b) for b in betas)


def scalar_ffn(value: float) -> nn.Module:
    ffn = nn.Linear(1, 1, bias=False)
    nn.init.constant_(ffn.weight, value)
    return ffn


def follow(
    rule: str, betas: tuple[float, ...], path: list[float], gradients: list[float] | None = None, **options
) -> list[float]:
    """Lets theta_1 take the values of ``path`` and returns where the evolved experts end."""
    ffn = scalar_ffn(path[0])
    evolution = ExpertEvolution({0: ffn}, EvolutionOptions(rule, fixed(*betas), **options), total_steps=len(path) - 1)
    for value, gradient in zip(path[1:], gradients or path[1:], strict=True):
        evolution.before_step()
        ffn.weight.data.fill_(value)
        ffn.weight.grad = torch.full((1, 1), gradient)
        evolution.after_step()
    return [shadow[0].item() for shadow in evolution.shadows]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # theta_1: 1 -> 3 -> 7, beta = 0.75 and 0.5
        ("ema", [0.75 * (0.75 * 1 + 0.25 * 3) + 0.25 * 7, 0.5 * (0.5 * 1 + 0.5 * 3) + 0.5 * 7]),
        ("scaled_update", [1 + 0.25 * 2 + 0.25 * 4, 1 + 0.5 * 2 + 0.5 * 4]),
        ("lookback", [0.75 * 3 + 0.25 * 7, 0.5 * 3 + 0.5 * 7]),
        ("literal", [0.75 * 7 + 0.25 * 10, 0.5 * 7 + 0.5 * 10]),
    ],
)
def test_the_four_readings_of_equation_1_by_hand(rule, expected):
    assert follow(rule, (0.75, 0.5), [1.0, 3.0, 7.0], gradients=[-10.0, 10.0]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rule", "at_0", "at_1"),
    [("ema", 7.0, 1.0), ("scaled_update", 7.0, 1.0), ("lookback", 7.0, 3.0), ("literal", 10.0, 7.0)],
)
def test_the_ends_of_beta_mean_what_the_table_says(rule, at_0, at_1):
    assert follow(rule, (0.0, 1.0), [1.0, 3.0, 7.0], gradients=[-10.0, 10.0]) == pytest.approx([at_0, at_1])


@pytest.mark.parametrize("rule", RULES)
def test_experts_stop_following_after_the_stop_fraction(rule):
    path = [1.0, 3.0, 7.0, 20.0, -4.0]
    assert follow(rule, (0.5,), path, stop_fraction=0.5) == pytest.approx(follow(rule, (0.5,), path[:3]))
    assert follow(rule, (0.5,), path, stop_fraction=0.0) == [1.0]


def test_betas_are_drawn_anew_at_every_step_inside_their_ranges_and_depend_on_the_seed():
    ffns = {layer: scalar_ffn(0.0) for layer in (0, 2)}
    evolution = ExpertEvolution(ffns, EvolutionOptions(), total_steps=200)
    draws = [evolution.draw_betas(step) for step in range(200)]
    for n, (low, high) in enumerate(evolution.config.beta_ranges):
        values = [draw[n][0] for draw in draws]
        assert low <= min(values) < max(values) <= high and len(set(values)) == 200
        assert min(values) < low + 0.1 * (high - low) and max(values) > high - 0.1 * (high - low)
        assert all(draw[n][0] == draw[n][2] for draw in draws)
    assert draws[5] == evolution.draw_betas(5)
    assert draws[5] != ExpertEvolution(ffns, EvolutionOptions(seed=1), 200).draw_betas(5)
    by_layer = ExpertEvolution(ffns, EvolutionOptions(beta_scope="layer"), 200).draw_betas(5)
    assert by_layer[0][0] != by_layer[0][2]


def test_per_layer_betas_reach_their_layers():
    ffns = {layer: scalar_ffn(0.0) for layer in (0, 2)}
    evolution = ExpertEvolution(ffns, EvolutionOptions("scaled_update", ((0.0, 1.0),), beta_scope="layer"), 1)
    evolution.before_step()
    for ffn in ffns.values():
        ffn.weight.data.fill_(1.0)
    evolution.after_step()
    betas = evolution.draw_betas(1)[0]
    assert [t.item() for t in evolution.shadows[0]] == pytest.approx([1 - betas[0], 1 - betas[2]])


def test_a_small_step_is_not_lost_when_the_model_is_bfloat16():
    ffn = scalar_ffn(1.0).to(torch.bfloat16)
    evolution = ExpertEvolution({0: ffn}, EvolutionOptions("ema", fixed(0.99)), total_steps=100)
    ffn.weight.data.fill_(1.0078125)  # the next number after 1 in bfloat16
    for _ in range(100):
        evolution.before_step()
        evolution.after_step()
    gap = 1.0078125 - evolution.shadows[0][0].item()
    assert evolution.shadows[0][0].dtype == torch.float32
    assert gap == pytest.approx(0.0078125 * 0.99**100, rel=1e-3)


def start_of(evolution: ExpertEvolution, folder: Path) -> StartOfStage2:
    start = StartOfStage2(folder / "start.safetensors")
    start.write(evolution)
    return start


def random_walk(ffn: nn.Module, evolution: ExpertEvolution, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        evolution.before_step()
        for parameter in ffn.parameters():
            parameter.data += torch.randn(parameter.shape, generator=generator)
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        evolution.after_step()


@pytest.mark.parametrize("rule", RULES)
def test_a_run_that_is_saved_and_resumed_gives_the_same_experts(rule, tmp_path):
    options = EvolutionOptions(rule, stop_fraction=0.8, seed=3)
    torch.manual_seed(0)
    ffn = nn.Linear(3, 4)
    straight = ExpertEvolution({2: ffn}, options, total_steps=10)
    start = start_of(straight, tmp_path)
    random_walk(ffn, straight, range(4))
    straight.save(tmp_path)
    state = {name: value.clone() for name, value in ffn.state_dict().items()}
    random_walk(ffn, straight, range(4, 10))

    torch.manual_seed(1)
    again = nn.Linear(3, 4)
    again.load_state_dict(state)
    resumed = ExpertEvolution({2: again}, options, total_steps=10)
    resumed.load(tmp_path)
    random_walk(again, resumed, range(4, 10))
    for name, tensor in straight.expert_tensors().items():
        assert torch.equal(resumed.expert_tensors()[name], tensor)
    assert diversity_report(resumed, start) == diversity_report(straight, start)
    start.path.unlink()
    with pytest.raises(ValueError, match="start.safetensors is not there: begin Stage II anew"):
        diversity_report(resumed, start)


@pytest.mark.parametrize("rule", RULES)
def test_a_thousand_steps_stay_as_near_to_the_formula_as_float32_can(rule):
    """Adding what the rule needs of theta_1 before the step beforehand costs no precision: against Eq. 1 in float64."""
    generator = torch.Generator().manual_seed(0)
    ffn, rate = nn.Linear(20, 20), 1e-4
    evolution = ExpertEvolution({0: ffn}, EvolutionOptions(rule), total_steps=1000)
    theta1 = ffn.weight.detach().double().numpy()
    experts = [theta1.copy() for _ in range(3)]
    for step in range(1, 1001):
        evolution.before_step()
        before = ffn.weight.detach().double().numpy()
        ffn.weight.data += rate * torch.randn(20, 20, generator=generator)
        ffn.weight.grad = torch.randn(20, 20, generator=generator)
        ffn.bias.grad = torch.zeros(20)
        evolution.after_step()
        now, gradient = ffn.weight.detach().double().numpy(), ffn.weight.grad.double().numpy()
        for n, by_layer in enumerate(evolution.draw_betas(step)):
            b = by_layer[0]
            experts[n] = {
                "ema": b * experts[n] + (1 - b) * now,
                "scaled_update": experts[n] + (1 - b) * (now - before),
                "lookback": b * before + (1 - b) * now,
                "literal": b * now + (1 - b) * gradient,
            }[rule]
    for expert, shadow in zip(experts, evolution.shadows, strict=True):
        error = np.abs(shadow[0].double().numpy() - expert).max()
        assert error < 5e-6 * np.abs(expert).max() and (rule == "literal" or np.abs(expert - now).max() > 100 * error)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_evolution_holds_four_bytes_for_each_weight_of_each_evolved_expert_and_nothing_else(rule, dtype):
    ffn = nn.Linear(30, 40).to(dtype)
    evolution = ExpertEvolution({0: ffn}, EvolutionOptions(rule), 2)
    random_walk(ffn, evolution, range(1))
    evolution.before_step()

    def held(thing: object) -> int:
        if isinstance(thing, torch.Tensor):
            return thing.nbytes
        parts = thing.values() if isinstance(thing, dict) else thing if isinstance(thing, list | tuple) else ()
        return sum(map(held, parts))

    assert held(vars(evolution)) == 3 * 4 * (30 * 40 + 40)


@pytest.mark.gpu
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_in_the_memory_of_the_cpu_are_bit_by_bit_those_on_the_device(rule, dtype):
    found = []
    for offload in (False, True):
        torch.manual_seed(0)
        ffn = nn.Linear(30, 40).to("cuda", dtype)
        evolution = ExpertEvolution({0: ffn}, EvolutionOptions(rule, offload=offload), 10)
        for step in range(5):
            evolution.before_step()
            for parameter in ffn.parameters():
                generator = torch.Generator().manual_seed(step)
                parameter.data += torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter)
            evolution.after_step()
        kept = evolution.shadows[0][0]
        assert kept.is_cuda != offload and kept.is_pinned() == offload
        found.append(evolution.expert_tensors())
    for name, tensor in found[0].items():
        assert torch.equal(found[1][name], tensor)


@pytest.mark.parametrize("rule", RULES)
def test_a_step_that_was_skipped_leaves_the_experts_where_they_were(rule):
    ffn = nn.Linear(3, 4)
    evolution = ExpertEvolution({0: ffn}, EvolutionOptions(rule), 10)
    random_walk(ffn, evolution, range(2))
    before = {name: tensor.clone() for name, tensor in evolution.expert_tensors().items()}
    if rule == "lookback":  # which has no memory: a step of no length leaves copies of theta_1
        before = {name: ffn.get_parameter(name.rpartition(".")[2]).detach() for name in before}
    evolution.before_step()
    evolution.after_step(happened=False)
    assert evolution.step == 2
    for name, tensor in evolution.expert_tensors().items():
        torch.testing.assert_close(tensor, before[name], atol=1e-6, rtol=1e-6)


def test_half_a_step_is_neither_saved_nor_taken_twice(tmp_path):
    ffn = scalar_ffn(1.0)
    evolution = ExpertEvolution({0: ffn}, EvolutionOptions("scaled_update", fixed(0.5)), 10)
    evolution.before_step()
    evolution.before_step()
    with pytest.raises(RuntimeError, match="half-way through a step"):
        evolution.save(tmp_path)
    ffn.weight.data.fill_(3.0)
    evolution.after_step()
    assert evolution.shadows[0][0].item() == 2.0
    with pytest.raises(RuntimeError, match="without before_step"):
        evolution.after_step()


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    ffn = nn.Linear(3, 4)
    ExpertEvolution({0: ffn}, EvolutionOptions(), 10).save(tmp_path)
    for options, steps in ((EvolutionOptions("ema"), 10), (EvolutionOptions(), 11)):
        with pytest.raises(ValueError, match="Resume with the same recipe"):
            ExpertEvolution({0: ffn}, options, steps).load(tmp_path)
    with pytest.raises(ValueError, match="it is not a whole checkpoint of Stage II"):
        ExpertEvolution({0: ffn}, EvolutionOptions(), 10).load(tmp_path / "elsewhere")
    assert not list(tmp_path.glob("*.partial"))


def test_expert_tensors_are_named_as_the_initialiser_reads_them():
    evolution = ExpertEvolution({6: nn.Linear(2, 3)}, EvolutionOptions(), 1)
    expected = {f"layers.6.experts.{n}.{name}" for n in (1, 2, 3) for name in ("weight", "bias")}
    assert set(evolution.expert_tensors()) == expected


def test_the_evolved_experts_are_no_part_of_the_model():
    ffn = nn.Linear(3, 4)
    ExpertEvolution({0: ffn}, EvolutionOptions(), 10)
    assert {name for name, _ in ffn.named_parameters()} == {"weight", "bias"} and not list(ffn.buffers())


def test_relative_distance_of_a_scaled_update_is_beta(tmp_path):
    ffn = nn.Linear(5, 5)
    evolution = ExpertEvolution({0: ffn}, EvolutionOptions("scaled_update", fixed(0.9, 0.4)), 3)
    start = start_of(evolution, tmp_path)
    random_walk(ffn, evolution, range(3))
    assert [by_layer[0] for by_layer in relative_distances(evolution, start)] == pytest.approx([0.9, 0.4], rel=1e-5)


def test_collapsed_experts_are_named_and_refused_with_a_way_out(tmp_path):
    ffn = nn.Linear(5, 5)
    evolution = ExpertEvolution({0: ffn}, EvolutionOptions("lookback"), 3)
    start = start_of(evolution, tmp_path)
    random_walk(ffn, evolution, range(3))
    check_not_collapsed(diversity_report(evolution, start), "cosine")
    evolution.total_steps += 1
    evolution.before_step()
    evolution.after_step()  # a step without movement, as at the end of a cosine schedule
    report = diversity_report(evolution, start)
    assert report["collapsed"] == ["expert2", "expert3", "expert4"]
    with pytest.raises(
        ValueError, match="'lookback' with stop_fraction 1.0 under a cosine .*scaled_update.*`allow_collapsed_experts=True`"
    ):
        check_not_collapsed(report, "cosine")
    report["collapsed"].pop()
    check_not_collapsed(report, "cosine")


def test_bad_options_are_named():
    with pytest.raises(ValueError, match=r"\[0.5, 1.2\]"):
        EvolutionOptions(beta_ranges=((0.5, 1.2),)).check(2)
    with pytest.raises(ValueError, match=r"\[0.9, 0.5\]"):
        EvolutionOptions(beta_ranges=((0.9, 0.5),)).check(2)
    with pytest.raises(ValueError, match="^stop_fraction: "):
        EvolutionOptions(stop_fraction=1.5).check(4)
    with pytest.raises(ValueError, match="4 experts need 3"):
        EvolutionOptions(beta_ranges=fixed(0.9, 0.8)).check(4)
    with pytest.raises(ValueError, match="did you mean 'ema'. Choose from ema, scaled_update"):
        ExpertEvolution({0: nn.Linear(1, 1)}, EvolutionOptions("emma"), 1)
    with pytest.raises(ValueError, match="at least one step"):
        ExpertEvolution({0: nn.Linear(1, 1)}, EvolutionOptions(), 0)
