"""A variable number of experts: the invariants of selection, budget and gradients, each against a form written out."""

import itertools
from dataclasses import replace

import pytest
import torch
from small_routers import D, R, T, a_router, counts, tokens

from evomoe.model.modality import Modality
from evomoe.model.routers import ROUTERS
from evomoe.model.routers.anyexperts import CAPS, AnyExpertsRouter, choose_capped


@pytest.mark.parametrize("scope", CAPS)
@pytest.mark.parametrize(("low", "high"), [(1, 8), (4, 8), (5, 5), (2.4, 6.6)])
def test_slots_lie_in_their_range_within_the_cap_and_none_twice(scope, low, high):
    router = a_router(k_min=low, k_max=high, rho=0.4, cap_scope=scope).train()
    x_TD, modality = tokens()
    routing = router.route(x_TD, modality, 4, "straight_through")
    real_T, virtual_T = counts(routing)
    slots_T = real_T + virtual_T
    wanted_T = (low + (high - low) * routing.importance_T.sigmoid()).round()
    assert torch.equal(slots_T, wanted_T.long()) and low - 0.5 <= slots_T.min() and slots_T.max() <= high + 0.5
    assert low == high or len(slots_T.unique()) > 2
    assert (real_T >= 1).all() and virtual_T.any()
    if scope == "token":
        assert (virtual_T <= (0.4 * slots_T + 1e-6).floor()).all()
    if scope == "batch":
        assert virtual_T.sum() <= 0.4 * slots_T.sum() and (virtual_T > 0.4 * slots_T).any()
    for chosen_K in routing.index_TK.tolist():
        experts = [expert for expert in chosen_K if expert < routing.logits_TE.shape[1]]
        assert len(set(experts)) == len(experts)


def test_every_token_keeps_so_many_real_experts():
    router = a_router(k_min=3, k_max=6, rho=0.9, num_virtual=6, min_real=3)
    real_T, virtual_T = counts(router.route(*tokens(), 4, "straight_through"))
    assert real_T.min() == 3 and virtual_T.max() > 1


def test_scores_by_hand():
    router = AnyExpertsRouter(D, 2, num_virtual=1, alpha_f=0.5, lam=2.0).eval()
    router.importance.outer.bias.data.fill_(1.0)
    x_TD, modality = tokens(1)
    router.gate.weight.data = torch.stack([x_TD[0], -x_TD[0], 2 * x_TD[0]]) / x_TD.square().sum()
    w = torch.tensor(1.0).sigmoid()
    shift, scale = 2 * (2 * w - 1), 1 + 0.5 * w
    torch.testing.assert_close(router(x_TD, modality), torch.stack([scale + shift, shift - scale, 2 * scale - shift])[None])


def best_by_force(logits_N: list[float], num_real: int, slots: int, cap: int) -> set[int]:
    """The set of so many experts, with so many virtual ones at most, whose logits add up to most."""
    allowed = (
        chosen
        for chosen in itertools.combinations(range(len(logits_N)), slots)
        if sum(expert >= num_real for expert in chosen) <= cap
    )
    return set(max(allowed, key=lambda chosen: sum(logits_N[expert] for expert in chosen)))


@pytest.mark.parametrize("seed", range(20))
def test_the_choice_is_the_best_of_all_that_the_cap_allows(seed):
    generator = torch.Generator().manual_seed(seed)
    num_real, virtual, most = 5, seed % 4, 4
    logits_TN = torch.randn(12, num_real + virtual, generator=generator)
    slots_T = torch.randint(1, most + 1, (12,), generator=generator)
    cap_T = torch.minimum(torch.randint(0, 4, (12,), generator=generator), slots_T - 1)
    index_TK = choose_capped(logits_TN, num_real, slots_T, cap_T, most)
    for logits_N, chosen_K, slots, cap in zip(
        logits_TN.tolist(), index_TK.tolist(), slots_T.tolist(), cap_T.tolist(), strict=True
    ):
        chosen = [expert for expert in chosen_K if expert < len(logits_N)]
        assert set(chosen) == best_by_force(logits_N, num_real, slots, cap) and len(chosen) == slots
        assert chosen_K[slots:] == [len(logits_N)] * (most - slots)


@pytest.mark.parametrize("seed", range(10))
def test_the_cap_of_a_batch_gives_the_best_sum_of_all(seed):
    generator = torch.Generator().manual_seed(seed)
    num_real, tokens_, rho = 4, 3, 0.4
    logits_TN = torch.randn(tokens_, num_real + 2, generator=generator)
    slots_T = torch.randint(1, 5, (tokens_,), generator=generator)
    allowed = int(rho * int(slots_T.sum()) + 1e-6)
    cap_T = CAPS["batch"](logits_TN, num_real, slots_T, rho, 1)
    found = sum(_sum_of(logits_TN[t], num_real, int(slots_T[t]), int(cap_T[t])) for t in range(tokens_))
    best = max(
        sum(_sum_of(logits_TN[t], num_real, int(slots_T[t]), caps[t]) for t in range(tokens_))
        for caps in itertools.product(range(3), repeat=tokens_)
        if sum(caps) <= allowed and all(cap <= slots - 1 for cap, slots in zip(caps, slots_T.tolist(), strict=True))
    )
    assert cap_T.sum() <= allowed and found == pytest.approx(best, abs=1e-5)


def _sum_of(logits_N: torch.Tensor, num_real: int, slots: int, cap: int) -> float:
    return float(sum(logits_N[expert] for expert in best_by_force(logits_N.tolist(), num_real, slots, cap)))


@pytest.mark.parametrize("gate", ["probability", "normalised", "straight_through"])
def test_neutral_options_are_plain_top_k(gate):
    x_TD, modality = tokens()
    router = a_router(k_min=3, k_max=3, num_virtual=0, alpha_f=0.0, lam=0.0)
    linear = ROUTERS["linear"](D, R)
    linear.gate.weight = router.gate.weight
    ours, plain = (one.route(x_TD, modality, 3, gate) for one in (router, linear))
    assert torch.equal(ours.index_TK, plain.index_TK) and torch.equal(ours.weight_TK, plain.weight_TK)
    assert torch.equal(ours.logits_TE, plain.logits_TE) and ours.input_scale_T1 is None


def test_more_importance_only_adds_real_experts():
    x_TD, modality = tokens()
    before: set[tuple[int, int]] = set()
    for bias in (-4.0, -1.0, 0.0, 1.0, 4.0):
        router = a_router(k_min=1, k_max=8, alpha_f=0.0, lam=2.0)
        router.importance.outer.bias.data.fill_(bias)
        index_TK = router.route(x_TD, modality, 4, "straight_through").index_TK
        real = {(token, expert) for token, chosen in enumerate(index_TK.tolist()) for expert in chosen if expert < R}
        assert before < real
        before = real


def test_no_token_s_experts_depend_on_the_others():
    router = a_router(k_min=2, k_max=8, rho=0.4)
    x_TD, modality = tokens()
    together = router.route(x_TD, modality, 4, "straight_through")
    order = torch.randperm(T)
    permuted = router.route(x_TD[order], Modality.of(modality.is_image_T[order][None], None), 4, "straight_through")
    assert torch.equal(permuted.index_TK, together.index_TK[order])
    half = router.route(x_TD[: T // 2], Modality.of(modality.is_image_T[None, : T // 2], None), 4, "straight_through")
    assert torch.equal(half.index_TK, together.index_TK[: T // 2])
    torch.testing.assert_close(half.weight_TK, together.weight_TK[: T // 2])


@pytest.mark.parametrize("over", ["real", "all"])
@pytest.mark.parametrize("gate", ["probability", "normalised", "straight_through"])
@pytest.mark.parametrize(("alpha_f", "lam", "alive"), [(0.0, 0.0, False), (0.01, 0.0, True), (0.0, 1.0, True)])
def test_importance_learns_from_the_loss_only_where_it_enters_the_output(alpha_f, lam, alive, gate, over):
    """By lam also under "normalised": there the virtual experts' weights alone depend on it."""
    router = a_router(k_min=5, k_max=8, rho=0.4, alpha_f=alpha_f, lam=lam, over=over)
    x_TD, modality = tokens()
    routing = router.route(x_TD, modality, 3, gate)
    assert counts(routing)[1].any()
    scale_T1 = 1.0 if routing.input_scale_T1 is None else routing.input_scale_T1
    values = torch.linspace(-1, 1, R + len(router.virtual) + 1)[routing.index_TK]
    ((values * routing.weight_TK).sum(-1, keepdim=True) * scale_T1).square().sum().backward()
    gradients = [p.grad for p in router.importance.parameters()]
    assert all(g is not None and g.any() for g in gradients) if alive else not any(g is not None and g.any() for g in gradients)


def test_weights_by_hand():
    router = AnyExpertsRouter(D, 4, k_min=3, k_max=3, rho=0.4, num_virtual=1, alpha_f=0.0, lam=0.0).eval()
    x_TD, modality = tokens(1)
    logits_N = torch.tensor([0.4, 0.1, 0.3, 0.05, 0.15]).log()
    router.gate.weight.data = (logits_N[:, None] * x_TD / x_TD.square().sum()).contiguous()
    routing = {over: None for over in ("real", "all")}
    for over in routing:
        router.options = replace(router.options, over=over)
        routing[over] = router.route(x_TD, modality, 3, "straight_through")
    assert routing["real"].index_TK.tolist() == [[0, 2, 4]]
    torch.testing.assert_close(routing["real"].weight_TK, torch.tensor([[0.4 / 0.7, 0.3 / 0.7, 0.15 / 0.85]]))
    torch.testing.assert_close(routing["all"].weight_TK, torch.tensor([[0.4, 0.3, 0.15]]) / 0.85)
    torch.testing.assert_close(router.route(x_TD, modality, 3, "probability").weight_TK, torch.tensor([[0.4, 0.3, 0.15]]))


@pytest.mark.parametrize("over", ["real", "all"])
@pytest.mark.parametrize("gate", ["normalised", "straight_through"])
def test_no_weight_is_above_one_however_sure_a_virtual_expert_is(gate, over):
    router = a_router(k_min=4, k_max=4, rho=0.5, over=over)
    router.gate.weight.data[R] *= 100
    x_TD, modality = tokens()
    router.gate.weight.requires_grad_()
    routing = router.route(x_TD, modality, 4, gate)
    assert routing.probs_TE[:, R].max() == 1 and (routing.weight_TK >= 0).all() and routing.weight_TK.max() <= 1 + 1e-6
    routing.weight_TK.sum().backward()
    assert router.gate.weight.grad.isfinite().all()


def test_a_cap_of_whole_slots_is_whole_though_the_product_is_not_quite():
    for rho, slots, cap in ((0.84, 75, 63), (0.2, 5, 1), (0.2, 4, 0)):
        logits_TN, slots_T = torch.randn(1, 200), torch.tensor([slots])
        assert CAPS["token"](logits_TN, 100, slots_T, rho, 1).tolist() == [cap]
    logits_TN = torch.cat([torch.zeros(1, 100), torch.ones(1, 100)], -1)
    assert CAPS["batch"](logits_TN, 100, torch.tensor([50]), 0.58, 1).tolist() == [29]


def test_each_constant_is_its_own():
    router = a_router(virtual="constant", num_virtual=2)
    router.virtual.constants.data = torch.stack([torch.ones(D), 10 * torch.ones(D)])
    y_TD = router.virtual.add(torch.zeros(1, D), torch.ones(1, D), torch.tensor([[R, R + 1]]), torch.tensor([[0.5, 0.25]]))
    assert (y_TD == 3.0).all()


@pytest.mark.parametrize(("kind", "expected"), [("zero", 0.0), ("identity", 2.0), ("constant", 0.5)])
def test_what_virtual_experts_give(kind, expected):
    router = a_router(virtual=kind, num_virtual=3)
    if kind == "constant":
        torch.nn.init.constant_(router.virtual.constants, 1.0)
    x_TD = torch.full((2, D), 4.0)
    index_TK = torch.tensor([[R + 1, 0, R + 3], [0, 1, R + 3]])  # the last is no slot
    y_TD = router.virtual.add(torch.zeros(2, D), x_TD, index_TK, torch.tensor([[0.5, 0.3, 0.9], [0.2, 0.3, 0.9]]))
    assert (y_TD[0] == expected).all() and (y_TD[1] == 0).all()


def test_the_excess_is_the_mean_of_real_experts_over_the_budget_and_importance_can_lower_it():
    router = a_router(k_min=2, k_max=6, rho=0.4, lam=0.0, alpha_f=0.0)
    x_TD, modality = tokens()
    routing = router.route(x_TD, modality, 4, "straight_through")
    real_T, _ = counts(routing)
    assert router.target(4) == pytest.approx(0.6 * 4)
    assert routing.excess_T.mean().item() == pytest.approx(real_T.float().mean().item() / 2.4 - 1, abs=1e-6)
    before = routing.excess_T.mean().item()
    for _ in range(200):
        excess = router.route(x_TD, modality, 4, "straight_through").excess_T.mean()
        (gradient,) = torch.autograd.grad(excess.square(), router.importance.outer.bias)
        with torch.no_grad():
            router.importance.outer.bias -= 2 * gradient
    assert abs(router.route(x_TD, modality, 4, "straight_through").excess_T.mean().item()) < abs(before) / 2


def test_the_budget_of_the_target_is_the_one_that_was_set():
    assert a_router(budget=3.0).target(4) == pytest.approx(3.0) and a_router().target(4) == pytest.approx(4.0)
    assert a_router(k_min=4, k_max=6, num_virtual=0).target(4) == 5
