"""Every number that an analysis gives, as a pure function, against answers that are known."""

import math

import pytest
import torch
from torch import nn

from evomoe.analysis import balance, rigidity
from evomoe.analysis.density import bandwidth, densities, overlap
from evomoe.analysis.uniformity import (
    disagreement,
    effect_spread,
    mean_of_pairs,
    output_cka,
    output_cosine,
    symmetry_gradient,
    weight_cosine,
)


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


def test_the_mean_of_pairs_leaves_out_the_diagonal_and_what_could_not_be_compared():
    matrix_EE = torch.tensor([[1.0, 0.2, torch.nan], [0.4, 1.0, torch.nan], [torch.nan] * 3])
    assert mean_of_pairs(matrix_EE) == pytest.approx(0.3)
    assert math.isnan(mean_of_pairs(torch.full((2, 2), torch.nan)))


def ffn(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))


@torch.no_grad()
def test_permuted_neurons_are_other_weights_and_the_same_outputs():
    first, second, order = ffn(0), ffn(0), torch.randperm(64, generator=torch.Generator().manual_seed(1))
    second[0].weight.copy_(first[0].weight[order])
    second[0].bias.copy_(first[0].bias[order])
    second[2].weight.copy_(first[2].weight[:, order])
    second[2].bias.copy_(first[2].bias)
    for module in (first, second):
        module[2].bias.zero_()  # the only part that a permutation leaves where it is
    x_TD = torch.randn(100, 16, generator=torch.Generator().manual_seed(2))
    assert abs(mean_of_pairs(weight_cosine([list(first.parameters()), list(second.parameters())]))) < 0.1
    assert mean_of_pairs(output_cosine([first(x_TD), second(x_TD)])) == pytest.approx(1, abs=1e-5)
    assert mean_of_pairs(output_cka([first(x_TD), second(x_TD)])) == pytest.approx(1, abs=1e-5)


def test_output_cosine_is_a_mean_over_tokens_whatever_their_length():
    same, turned = torch.tensor([[1.0, 0.0], [0.0, 5.0]]), torch.tensor([[100.0, 0.0], [5.0, 0.0]])
    torch.testing.assert_close(output_cosine([same, turned]), torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64))


def test_cosine_of_task_vectors_by_hand():
    """Weights are near their start, and so near one another; the ways that they went are 60 degrees apart, or opposite."""
    start = [torch.full((2, 2), 100.0), torch.full((3,), 100.0)]
    ways = [
        torch.tensor([1.0, 0, 0, 0, 0, 0, 0]),
        torch.tensor([0.5, 0, 0, 0, 0, 0, 0.75**0.5]),
        torch.tensor([-2.0, 0, 0, 0, 0, 0, 0]),
    ]
    experts = [[start[0] + way[:4].view(2, 2), start[1] + way[4:]] for way in ways]
    expected = torch.tensor([[1, 0.5, -1], [0.5, 1, -0.5], [-1, -0.5, 1]], dtype=torch.float64)
    torch.testing.assert_close(weight_cosine(experts, start), expected, atol=1e-4, rtol=0)
    assert weight_cosine(experts).min() > 0.999
    stayed = weight_cosine([*experts[:1], start], start)
    assert stayed[0, 0] == pytest.approx(1) and stayed[1].isnan().all()


def test_the_symmetry_gradient_is_that_of_a_mixture_s_logits():
    """Against autograd: the gradient at the logits of a softmax mixture of experts, in the softmax's norm."""
    generator = torch.Generator().manual_seed(0)
    logits_TE = torch.randn(7, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    outputs_TED = torch.randn(7, 3, 5, generator=generator, dtype=torch.float64)
    gradient_TD = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    probs_TE = logits_TE.softmax(-1)
    loss = torch.einsum("te,ted,td->", probs_TE, outputs_TED, gradient_TD)
    (at_logits_TE,) = torch.autograd.grad(loss, logits_TE)
    probs_TE, effect_TE = probs_TE.detach(), torch.einsum("ted,td->te", outputs_TED, gradient_TD)
    apart, whole = effect_spread(effect_TE, probs_TE)
    assert apart.item() == pytest.approx((at_logits_TE.square() / probs_TE).sum().item())
    assert 0 < symmetry_gradient(apart.item(), whole.item()) < 1


@pytest.mark.parametrize(
    ("effect", "probs", "expected"),
    [
        ([3.0, 3.0, 3.0, 3.0], [0.7, 0.1, 0.1, 0.1], 0.0),
        ([1.0, -1.0], [0.5, 0.5], 1.0),
        ([2.0, 0.0], [0.5, 0.5], 0.5**0.5),
        ([2.0, 0.0], [1.0, 0.0], 0.0),
    ],
    ids=["copies", "opposite", "one does nothing", "the router is certain"],
)
def test_the_symmetry_gradient_by_hand(effect, probs, expected):
    apart, whole = effect_spread(torch.tensor([effect] * 2), torch.tensor([probs] * 2))
    assert symmetry_gradient(apart.item(), whole.item()) == pytest.approx(expected, abs=1e-6)


def test_no_effect_at_all_has_no_symmetry_gradient():
    assert math.isnan(symmetry_gradient(*(value.item() for value in effect_spread(torch.zeros(2, 2), torch.full((2, 2), 0.5)))))


def test_experts_disagree_on_a_question_when_one_of_them_does():
    alone = [["yes", "no", "red", "two"], ["yes", "no", "red", "2"], ["yes", "yes", "red", "two"]]
    assert disagreement(alone) == 0.5
    assert disagreement([["a", "b"]] * 4) == 0 and math.isnan(disagreement([[], []]))
    with pytest.raises(ValueError, match="zip"):
        disagreement([["a"], ["a", "b"]])


def test_a_normal_sample_has_a_normal_density():
    values_N = torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 2 + 1
    assert bandwidth(values_N) == pytest.approx(0.9 * 2 * 4000**-0.2, rel=0.05)
    grid_G, by_name = densities({"normal": values_N, "empty": values_N[:0]}, width=1e6)  # a scale as good as linear
    expected_G = torch.distributions.Normal(1, 2).log_prob(grid_G).exp()
    step = grid_G[1] - grid_G[0]
    assert list(by_name) == ["normal"] and (by_name["normal"] / step - expected_G).abs().max() < 0.015
    assert by_name["normal"].sum().item() == pytest.approx(1)


def test_a_few_values_far_out_move_neither_grid_nor_bandwidth():
    values_N = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    with_outlier_N = torch.cat([values_N, torch.tensor([1e4])])
    assert bandwidth(with_outlier_N) == pytest.approx(bandwidth(values_N), rel=0.01)
    assert overlap(with_outlier_N, values_N) > 0.99


def test_overlap_of_two_normals_is_that_of_their_distributions():
    generator = torch.Generator().manual_seed(0)
    first_N, second_N = torch.randn(5000, generator=generator), torch.randn(3000, generator=generator)
    for apart in (0.0, 1.0, 2.0):
        expected = 2 * torch.distributions.Normal(0, 1).cdf(torch.tensor(-apart / 2)).item()
        assert overlap(first_N, second_N + apart) == pytest.approx(expected, abs=0.03)
        assert overlap((2 * first_N).sinh(), (2 * (second_N + apart)).sinh()) == pytest.approx(expected, abs=0.06)  # long tails


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [([0.0] * 9, [10.0] * 4, 0.0), ([10.0] * 9, [10.0] * 4, 1.0), ([-3e38] * 3, [-3e38] * 3, 1.0), ([1.0], [2.0], 0.0)],
)
def test_values_that_do_not_vary_overlap_wholly_or_not_at_all(first, second, expected):
    assert overlap(torch.tensor(first), torch.tensor(second)) == pytest.approx(expected, abs=1e-6)


def test_a_modality_without_tokens_overlaps_with_nothing_that_could_be_said():
    assert math.isnan(overlap(torch.zeros(0), torch.ones(3))) and densities({"none": torch.zeros(0)}) is None


def mutual_information(counts_ME: torch.Tensor) -> float:
    """What a token's expert tells of its modality, in bits, taking the counted shares for probabilities."""
    share_ME = counts_ME.double() / counts_ME.sum()
    return rigidity.entropy(share_ME.sum(0)) + rigidity.entropy(share_ME.sum(1)) - rigidity.entropy(share_ME)


SEPARATED = torch.tensor([[500, 0, 0, 0], [0, 0, 500, 0]])
BLIND = torch.tensor([[400, 300, 200, 100], [800, 600, 400, 200]])


def test_a_deterministic_map_from_modality_to_expert_tells_all():
    assert mutual_information(SEPARATED) == pytest.approx(1)
    assert rigidity.normalised_mutual_information(SEPARATED) == pytest.approx(1)
    assert rigidity.jensen_shannon(*balance.load(SEPARATED)) == pytest.approx(1)
    unbalanced = torch.tensor([[0, 90, 0], [500, 0, 410]])
    assert rigidity.normalised_mutual_information(unbalanced) == pytest.approx(1)
    assert rigidity.jensen_shannon(*balance.load(unbalanced)) == pytest.approx(1)


def test_a_router_that_is_blind_to_the_modality_tells_nothing():
    assert mutual_information(BLIND) == pytest.approx(0, abs=1e-12)
    assert rigidity.normalised_mutual_information(BLIND) == 0
    assert rigidity.jensen_shannon(*balance.load(BLIND)) == pytest.approx(0, abs=1e-12)


def test_chance_does_not_count_as_information():
    """50 tokens of each modality thrown at random over four experts: much apparent information, in the mean none."""
    generator = torch.Generator().manual_seed(0)
    counts = [
        torch.stack([torch.bincount(torch.randint(4, (50,), generator=generator), minlength=4) for _ in range(2)])
        for _ in range(200)
    ]
    apparent = sum(mutual_information(counts_ME) for counts_ME in counts) / len(counts)
    corrected = [rigidity.normalised_mutual_information(counts_ME) for counts_ME in counts]
    assert apparent > 0.018 and sum(corrected) / len(counts) < 0.5 * apparent and sum(value == 0 for value in corrected) > 100


def test_jensen_shannon_is_the_mutual_information_of_balanced_modalities():
    counts_ME = torch.randint(1, 100, (2, 5), generator=torch.Generator().manual_seed(0))
    counts_ME[:, 0] += counts_ME.sum(1).max() - counts_ME.sum(1)
    assert rigidity.jensen_shannon(*balance.load(counts_ME)) == pytest.approx(mutual_information(counts_ME))


def test_information_by_hand():
    """Text always to expert 0, image to expert 0 or 1, half each: 0.311 of 1 bit."""
    counts_ME = torch.tensor([[20_000_000, 0], [10_000_000, 10_000_000]])
    assert mutual_information(counts_ME) == pytest.approx(0.311278, abs=1e-6)
    assert rigidity.normalised_mutual_information(counts_ME) == pytest.approx(0.311278, abs=1e-5)


def test_one_modality_alone_has_nothing_to_tell():
    counts_ME = torch.tensor([[3, 4], [0, 0]])
    assert math.isnan(rigidity.normalised_mutual_information(counts_ME))
    assert math.isnan(rigidity.jensen_shannon(*balance.load(counts_ME)))


def test_a_token_has_changed_when_its_set_of_experts_has():
    before_TK = torch.tensor([[0, 1], [0, 1], [2, 4], [2, 5], [3, 1]])
    after_TK = torch.tensor([[0, 1], [1, 0], [2, 6], [5, 0], [3, 2]])
    assert rigidity.changed_tokens(before_TK, after_TK, num_experts=4).tolist() == [False, False, False, True, True]


def test_balance_at_its_ends_and_between():
    load_LE = balance.load(torch.tensor([[5, 5, 5, 5], [20, 0, 0, 0], [10, 10, 0, 0], [0, 0, 0, 0]]))
    torch.testing.assert_close(load_LE.sum(-1), torch.tensor([1.0, 1, 1, 0], dtype=torch.float64))
    assert balance.effective_experts(load_LE[:3]).tolist() == pytest.approx([4, 1, 2])
    assert balance.coefficient_of_variation(load_LE[:3]).tolist() == pytest.approx([0, 3**0.5, 1])
    assert balance.dead_experts(load_LE[:3]).tolist() == [0, 3, 2]


def test_an_expert_is_dead_below_a_tenth_of_its_equal_share():
    assert balance.dead_experts(torch.tensor([0.025, 0.0249, 0.5, 0.4501], dtype=torch.float64)).item() == 1
