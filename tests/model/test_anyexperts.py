"""A variable number of experts: the invariants of selection, budget and gradients, each against a form written out."""

import itertools
import warnings
from dataclasses import replace

import pytest
import torch
from tiny import IMAGE_TOKEN, inputs_for, make_llava

from evomoe.analysis.calibration import calibrate, mean_real_experts, real_experts_per_token
from evomoe.analysis.interventions import shuffled_importance
from evomoe.analysis.recording import record_routing
from evomoe.conversion.upcycling import upcycle
from evomoe.model.budget import set_budget, set_cap_scope
from evomoe.model.loading import load_model
from evomoe.model.modality import Modality
from evomoe.model.routers import ROUTERS
from evomoe.model.routers.anyexperts import CAPS, AnyExpertsRouter, choose_capped
from evomoe.model.routers.choice import ChoiceBias, hide_groups
from evomoe.recipe.anyexperts_options import matched
from evomoe.recipe.row_options import RouterWarning

D, R, T = 16, 8, 60


def tokens(count: int = T, seed: int = 0) -> tuple[torch.Tensor, Modality]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, D, generator=generator), Modality.of((torch.arange(count) % 3 == 0)[None], None)


def a_router(seed: int = 0, **options) -> AnyExpertsRouter:
    """One whose importance and scores differ from token to token."""
    torch.manual_seed(seed)
    router = AnyExpertsRouter(D, options.pop("num_experts", R), **options).eval()
    torch.nn.init.normal_(router.importance.outer.weight, std=1.0)
    torch.nn.init.normal_(router.gate.weight, std=1.0)
    return router


def counts(routing, num_real: int = R) -> tuple[torch.Tensor, torch.Tensor]:
    """Real and virtual slots of each token."""
    every = routing.logits_TE.shape[1]
    return (routing.index_TK < num_real).sum(-1), ((routing.index_TK >= num_real) & (routing.index_TK < every)).sum(-1)


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


def test_the_range_that_matches_a_budget():
    assert matched(8, 0.2, 4) == (8, 12) and matched(7.2, 0.2, 4) == pytest.approx((7, 11))
    assert matched(4.8, 0.2, 4) == pytest.approx((4, 8))
    assert AnyExpertsRouter(D, R, k_min=2, k_max=6, budget=4.0).slots(1) == (3, 7)
    assert AnyExpertsRouter(D, R, budget=4.0, num_virtual=0).slots(2) == (3.5, 4.5)
    low, high = matched(1, 0.2, 4)
    assert low == 1 and high == pytest.approx(1.5)  # narrower, around the same middle
    with pytest.raises(ValueError, match="0.5 real experts per token are less than one slot; ask for 0.8 or more"):
        matched(0.5, 0.2, 4)


def spread_out(model) -> None:
    """Gives the routers of a model importance and scores that differ from token to token."""
    for block in model.moe_blocks.values():
        torch.nn.init.normal_(block.router.importance.outer.weight, std=1.0)
        torch.nn.init.normal_(block.router.gate.weight, std=0.5)


def fine_grained(llava, **options):
    """A LLaVA with eight small experts in place of each FFN."""
    torch.manual_seed(0)
    model = upcycle(llava, num_experts=8, expert_init="partition", num_experts_per_tok=4, router="anyexperts", moe_layers="all",
                    router_options={"rho": 0.4, "span": 2.0, **options}).eval()  # fmt: skip
    spread_out(model)
    return model


def test_a_larger_budget_never_gives_fewer_experts_and_stays_with_the_model(llava, tmp_path):
    model, inputs = fine_grained(llava), inputs_for(llava)
    means = []
    for real in (1.2, 2.0, 3.0, 4.0):
        set_budget(model, real)
        means.append(real_experts_per_token(model, lambda model: model(**inputs)))
    assert means == sorted(means) and means[0] < means[-1]
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert again.config.moe.router_options["budget"] == 4.0
    assert real_experts_per_token(again, lambda model: model(**inputs)) == means[-1]
    with pytest.raises(
        ValueError, match="a budget of 6 takes 9 to 11 slots, but there are only 8 real experts. .* budget is 4.2"
    ):
        set_budget(model, 6.0)
    assert model.moe_blocks[0].router.options.budget == 4.0 == model.config.moe.router_options["budget"]
    with pytest.raises(ValueError, match="is not an EvoMoE model, so it has no routers"):
        set_budget(make_llava(), 1.0)


def test_calibration_finds_the_budget_whose_mean_is_wanted(llava):
    model, inputs = fine_grained(llava), inputs_for(llava)
    for wanted in (2.0, 3.5):
        found = calibrate(model, wanted, lambda model: model(**inputs), tolerance=0.05)
        assert abs(found - wanted) < 0.3 and real_experts_per_token(model, lambda model: model(**inputs)) == found


def test_a_mean_that_cannot_be_had_is_told_and_budgets_that_are_only_tried_are_not(llava):
    model, inputs = fine_grained(llava), inputs_for(llava)
    with pytest.warns(RouterWarning) as said:
        found = calibrate(model, 7.9, lambda model: model(**inputs))
    assert [str(one.message).split(":")[0] for one in said] == [
        f"7.9 real experts per token cannot be had, {found:.2f} is the nearest mean"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrate(model, found, lambda model: model(**inputs))


def test_calibrating_to_what_is_there_changes_nothing(llava):
    model, inputs = fine_grained(llava, rho=0.15, k_min=2, k_max=7, min_real=2), inputs_for(llava)
    before = model(**inputs).logits
    own = real_experts_per_token(model, lambda model: model(**inputs))
    assert calibrate(model, own, lambda model: model(**inputs)) == own
    assert torch.equal(model(**inputs).logits, before)


def test_importance_of_other_tokens_is_a_permutation_and_ends_with_the_block(llava):
    model, inputs = fine_grained(llava), inputs_for(llava)
    own = model(**inputs, output_router_logits=True)
    with shuffled_importance(model, 1):
        other = model(**inputs, output_router_logits=True)
    first, shuffled = (out.records[0].routing.importance_T for out in (own, other))
    assert not torch.equal(first, shuffled) and torch.equal(first.sort().values, shuffled.sort().values)
    with shuffled_importance(model, 2):
        assert not torch.equal(model(**inputs, output_router_logits=True).records[0].routing.importance_T, shuffled)
    assert torch.equal(model(**inputs).logits, own.logits) and not torch.equal(other.logits, own.logits)
    with pytest.raises(ValueError, match="has no routers that estimate an importance"):
        shuffled_importance(upcycle(make_llava(), router="linear"), 1).__enter__()


def test_experts_are_given_what_importance_strengthened(llava):
    model, inputs = fine_grained(llava, alpha_f=0.5), inputs_for(llava)
    given, block = [], model.moe_blocks[1]
    block.experts.register_forward_hook(lambda module, args, output: given.append(args[0]))
    record = model(**inputs, output_router_logits=True)["records"][1]
    scale_T1 = 1 + 0.5 * record.routing.importance_T.sigmoid().unsqueeze(-1)
    torch.testing.assert_close(given[0], record.x_TD * scale_T1)


def test_the_mean_counts_real_experts_alone(llava):
    model, inputs = fine_grained(llava), inputs_for(llava)
    records = model(**inputs, output_router_logits=True)["records"].values()
    means = [(record.routing.index_TK < 8).sum(-1).float().mean() for record in records]
    assert any(
        ((record.routing.index_TK >= 8) & (record.routing.index_TK < record.routing.logits_TE.shape[1])).any()
        for record in records
    )
    assert real_experts_per_token(model, lambda model: model(**inputs)) == pytest.approx(float(sum(means) / len(means)))


def test_virtual_slots_run_no_expert(llava):
    model, inputs = fine_grained(llava), inputs_for(llava)
    rows = []
    for expert in model.moe_blocks[0].experts:
        expert.register_forward_hook(lambda module, args, output: rows.append(args[0].shape[0]))
    out = model(**inputs, output_router_logits=True)
    index_TK = out["records"][0].routing.index_TK
    assert sum(rows) == (index_TK < 8).sum() and (index_TK == 8).any() and (index_TK >= 8).sum() > (index_TK == 8).sum()


def test_padding_costs_and_counts_nothing(llava):
    model, inputs = fine_grained(llava), inputs_for(llava)
    real_tokens = int(inputs["attention_mask"].sum())
    assert real_tokens < inputs["attention_mask"].numel()
    with record_routing(model) as padded:
        assert all(len(logits) == real_tokens for logits in model(**inputs, output_router_logits=True)["router_logits"])
    rows = []
    for block in model.moe_blocks.values():
        for expert in block.experts:
            expert.register_forward_hook(lambda module, args, output: rows.append(args[0].shape[0]))
    model(**inputs)
    with_padding, rows[:] = sum(rows), []
    with record_routing(model) as alone:
        for row, mask in enumerate(inputs["attention_mask"].bool()):
            pictures = (
                int((inputs["input_ids"][:row] == IMAGE_TOKEN).sum()) // 4,
                int((inputs["input_ids"][row] == IMAGE_TOKEN).sum()) // 4,
            )
            one = {"input_ids": inputs["input_ids"][row][mask][None], "attention_mask": mask[mask].long()[None]}
            if pictures[1]:
                one["pixel_values"] = inputs["pixel_values"][pictures[0] : sum(pictures)]
            model(**one)
    assert sum(rows) == with_padding and alone.tokens == padded.tokens == real_tokens
    assert mean_real_experts(model, alone) == mean_real_experts(model, padded)


@pytest.mark.parametrize(
    ("options", "top_k", "gate", "message"),
    [
        ({"k_min": 0.4, "k_max": 2}, 1, "straight_through", "0.4 to 2 slots, where min_real is 1; give k_min and k_max"),
        (
            {"k_min": 2, "k_max": 9},
            1,
            "straight_through",
            "k_max: tokens would have 2 to 9 slots, but there are only 8 real experts; give k_min and k_max",
        ),
        (
            {"k_min": 1, "k_max": 4},
            1,
            "normalised",
            "k_min: it is 1, and a token may have 1 real expert. This gate gives .* choose `gate=straight_through`",
        ),
        (
            {"k_min": 2, "k_max": 4, "rho": 0.5},
            1,
            "normalised",
            "k_min: it is 2, and a token may have 1 real .* or `router_options.k_min=2` `router_options.min_real=2`",
        ),
        (
            {"k_min": 4, "k_max": 8, "cap_scope": "expectation", "num_virtual": 6},
            4,
            "normalised",
            "may have 1 real expert. This gate",
        ),
        ({"k_min": 1, "k_max": 4, "over": "all"}, 1, "normalised", "may have 1 slot. This gate"),
        ({"k_min": 3, "k_max": 2}, 1, "straight_through", "3 to 2 slots"),
        (
            {},
            8,
            "straight_through",
            "8 to 12 slots, .* only 8 real experts; with this cap `num_experts_per_tok` can be at most 5, or give k_min",
        ),
        ({"k_min": 2}, 1, "straight_through", "give both k_min and k_max, or neither"),
        ({"rho": 1.0}, 1, "straight_through", "rho: 1 must lie in .* the share of virtual slots"),
        ({"cap_scope": "sample"}, 1, "straight_through", "cap_scope: .* takes one of token, batch, expectation, not 'sample'"),
        ({"over": "some"}, 1, "straight_through", "over: .* takes one of real, all, not 'some'"),
        ({"virtual": "empty"}, 1, "straight_through", "virtual: .* takes one of zero, identity, constant, not 'empty'"),
        ({"min_real": 9}, 1, "straight_through", "min_real: 9 must be at least 1, and there are 8 real experts"),
    ],
)
def test_what_is_refused(options, top_k, gate, message):
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message):
        warnings.simplefilter("ignore")
        AnyExpertsRouter(D, R, **options).check(top_k, gate)


def test_a_cap_of_whole_slots_is_whole_though_the_product_is_not_quite():
    for rho, slots, cap in ((0.84, 75, 63), (0.2, 5, 1), (0.2, 4, 0)):
        logits_TN, slots_T = torch.randn(1, 200), torch.tensor([slots])
        assert CAPS["token"](logits_TN, 100, slots_T, rho, 1).tolist() == [cap]
    logits_TN = torch.cat([torch.zeros(1, 100), torch.ones(1, 100)], -1)
    assert CAPS["batch"](logits_TN, 100, torch.tensor([50]), 0.58, 1).tolist() == [29]


def test_a_cap_that_admits_no_virtual_expert_is_told():
    with pytest.warns(
        RouterWarning, match="with at most 4 slots, min_real=1 and rho=0.2 no token can have a virtual expert; that takes 5 slots"
    ):
        AnyExpertsRouter(D, R, k_min=2, k_max=4).check(2, "straight_through")
    for scope in ("token", "expectation"):
        with pytest.warns(RouterWarning, match="with at most 6 slots, min_real=6 .* that takes 7 slots"):
            AnyExpertsRouter(D, R, k_min=6, k_max=6, min_real=6, cap_scope=scope).check(2, "straight_through")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AnyExpertsRouter(D, R, k_min=2, k_max=5).check(2, "straight_through")
        AnyExpertsRouter(D, R, k_min=2, k_max=4, cap_scope="expectation").check(2, "straight_through")
        AnyExpertsRouter(D, R, k_min=2, k_max=4, num_virtual=0).check(2, "straight_through")


def test_a_batch_s_cap_is_for_training_alone():
    router = a_router(k_min=2, k_max=5, cap_scope="batch")
    with pytest.raises(ValueError, match="'batch' is for training alone"):
        router.route(*tokens(), 3, "straight_through")
    model = upcycle(make_llava(), num_experts=8, expert_init="partition", num_experts_per_tok=4, router="anyexperts",
                    router_options={"cap_scope": "batch"}).eval()  # fmt: skip
    with pytest.raises(ValueError, match=r"evomoe.model.budget.set_cap_scope\(model, 'token'\) does so"):
        model(**inputs_for(model))
    set_cap_scope(model, "token")
    model(**inputs_for(model))
    assert model.config.moe.router_options == {"cap_scope": "token"}
    with pytest.raises(ValueError, match="cap_scope: .* takes one of token, batch, expectation, not 'row'"):
        set_cap_scope(model, "row")


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
    assert routing.excess.item() == pytest.approx(real_T.float().mean().item() / 2.4 - 1, abs=1e-6)
    before = routing.excess.item()
    for _ in range(20):
        excess = router.route(x_TD, modality, 4, "straight_through").excess
        (gradient,) = torch.autograd.grad(excess.square(), router.importance.outer.bias)
        with torch.no_grad():
            router.importance.outer.bias -= 2 * gradient
    assert abs(router.route(x_TD, modality, 4, "straight_through").excess.item()) < abs(before) / 2


def test_the_budget_of_the_target_is_the_one_that_was_set():
    assert a_router(budget=3.0).target(4) == pytest.approx(3.0) and a_router().target(4) == pytest.approx(4.0)
    assert a_router(k_min=4, k_max=6, num_virtual=0).target(4) == 5


@pytest.mark.parametrize("best", [1, 2])
def test_experts_come_from_the_best_groups_alone(best):
    choice_TE = torch.rand(40, 12, generator=torch.Generator().manual_seed(0))
    found_TE = hide_groups(choice_TE, groups=4, open_groups=2, best=best)
    for choice_E, found_E in zip(choice_TE.tolist(), found_TE.tolist(), strict=True):
        groups = [choice_E[3 * g : 3 * g + 3] for g in range(4)]
        scores = [sum(sorted(group)[-best:]) for group in groups]
        is_open = [sorted(scores).index(score) >= 2 for score in scores]
        assert found_E == [c if is_open[e // 3] else float("-inf") for e, c in enumerate(choice_E)]
    assert torch.equal(hide_groups(choice_TE, 4, 4, 1), choice_TE)


def test_sigmoid_scores_groups_and_scale():
    router = a_router(
        k_min=3, k_max=3, num_virtual=2, rho=0.4, lam=0.0, scores="sigmoid", groups=4, open_groups=2, output_scale=2.5
    )
    x_TD, modality = tokens()
    routing = router.route(x_TD, modality, 3, "probability")
    p_TN = routing.logits_TE.sigmoid()
    torch.testing.assert_close(routing.weight_TK, 2.5 * p_TN.gather(1, routing.index_TK))
    torch.testing.assert_close(routing.probs_TE, p_TN / p_TN.sum(-1, keepdim=True))
    for t, chosen_K in enumerate(routing.index_TK.tolist()):
        assert len({expert // 2 for expert in chosen_K if expert < R}) <= 2
        assert max(range(R), key=lambda expert: p_TN[t, expert]) in chosen_K


def test_the_bias_takes_part_in_the_choice_and_not_in_the_weights():
    plain, biased = (a_router(k_min=3, k_max=3, lam=0.0, num_virtual=2, rho=0.4, biased=flag) for flag in (False, True))
    biased.load_state_dict(plain.state_dict(), strict=False)
    x_TD, modality = tokens()
    before = plain.route(x_TD, modality, 3, "probability")
    assert torch.equal(biased.route(x_TD, modality, 3, "probability").index_TK, before.index_TK)
    biased.bias.value_N[5] = 2.0
    after = biased.route(x_TD, modality, 3, "probability")
    assert (after.index_TK[:, 0] == 5).all() and not (before.index_TK == 5).any(-1).all()
    torch.testing.assert_close(after.weight_TK, after.probs_TE.gather(1, after.index_TK))
    assert torch.equal(after.probs_TE, before.probs_TE)


def test_the_bias_moves_by_hand():
    bias = ChoiceBias(4)
    bias.count(torch.tensor([[0, 1], [0, 3], [0, 4]]))  # 4: no expert
    bias.count(torch.tensor([[0, 1], [0, 3], [0, 2]]))
    bias.move(rate=0.1, num_real=3, virtual_share=0.4)
    shares = [6 / 11, 2 / 11, 1 / 11]
    torch.testing.assert_close(bias.value_N, torch.tensor([*(0.1 * (0.2 - share) for share in shares), 0.0]))
    moved = bias.value_N
    bias.move(rate=0.1, num_real=3, virtual_share=0.4)  # nothing was chosen since
    assert bias.value_N is moved


def test_the_bias_balances_experts_and_holds_the_virtual_share():
    router = a_router(k_min=4, k_max=4, lam=0.0, rho=0.25, num_virtual=8, cap_scope="expectation", bias_rate=0.05).train()
    with torch.no_grad():
        router.gate.weight *= 0.1
        router.gate.weight[:2] += 0.1  # two real experts that every token likes
    x_TD, modality = tokens(400)
    x_TD = x_TD + 0.5

    def shares() -> tuple[float, float]:
        index_TK = router.route(x_TD, modality, 4, "straight_through").index_TK
        counts_N = torch.bincount(index_TK.flatten(), minlength=R + 8).float()
        return (counts_N[R:].sum() / counts_N.sum()).item(), (counts_N[:R].max() / counts_N[:R].mean()).item()

    virtual, busiest = shares()
    for _ in range(300):
        router.route(x_TD, modality, 4, "straight_through")
        router.after_step()
    now_virtual, now_busiest = shares()
    assert abs(now_virtual - 0.25) < abs(virtual - 0.25) / 4 and now_busiest - 1 < (busiest - 1) / 4
    router.bias.value_N = torch.zeros(R + 8)
    with torch.no_grad():
        router.route(x_TD, modality, 4, "straight_through")
    router.eval().route(x_TD, modality, 4, "straight_through")
    router.after_step()
    assert not router.bias.value_N.any()  # what is asked outside training does not count


def test_the_bias_counts_the_tokens_of_all_processes(monkeypatch):
    bias = ChoiceBias(2)
    bias.count(torch.tensor([[0], [1]]))
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda counts_N: counts_N.add_(torch.tensor([2.0, 0.0])))
    bias.move(rate=1.0, num_real=2, virtual_share=0.0)
    torch.testing.assert_close(bias.value_N, torch.tensor([0.5 - 3 / 4, 0.5 - 1 / 4]))


def test_a_gate_under_which_importance_learns_nothing_from_its_shift_is_told():
    with pytest.warns(
        RouterWarning, match="under gate 'normalised' importance has no gradient .* choose `gate=straight_through`"
    ):
        AnyExpertsRouter(D, R, k_min=5, k_max=6, min_real=2).check(4, "normalised")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for options in ({"lam": 0.0}, {"virtual": "identity"}, {"over": "all"}):
            AnyExpertsRouter(D, R, k_min=5, k_max=6, min_real=2, **options).check(4, "normalised")
        AnyExpertsRouter(D, R, k_min=5, k_max=6).check(4, "straight_through")


def test_experts_in_groups_are_not_dropped():
    router = a_router(k_min=2, k_max=2, num_virtual=0, groups=4, open_groups=2).train()
    with pytest.raises(ValueError, match="expert_dropout: it knows no groups of experts"):
        router.route(*tokens(), 2, "straight_through", dropout=0.4)


def test_hidden_experts_are_not_chosen_for_their_bias():
    router = a_router(k_min=2, k_max=2, num_virtual=0, biased=True).train()
    router.bias.value_N[0] += 5.0
    x_TD, modality = tokens(400)
    routing = router.route(x_TD, modality, 2, "probability", dropout=0.5)
    assert (routing.weight_TK > 0).all()


def test_a_shuffled_router_hands_the_step_on():
    router = ROUTERS["shuffled"](D, R, inner="anyexperts", k_min=2, k_max=4, bias_rate=0.1).train()
    x_TD, modality = tokens()
    router.route(x_TD, modality, 2, "straight_through")
    router.after_step()
    assert router.inner.bias.value_N.any()
