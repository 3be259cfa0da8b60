"""The options of AnyExperts: what is refused, and what is told of options that do nothing."""

import warnings

import pytest
from small_routers import D, R, a_router, tokens
from tiny import inputs_for, make_llava

from evomoe.conversion.upcycling import upcycle
from evomoe.model.budget import set_budget, set_cap_scope, set_experts_per_token, set_router_options
from evomoe.model.routers.anyexperts import AnyExpertsRouter
from evomoe.recipe.anyexperts_options import matched
from evomoe.recipe.row_options import RouterWarning
from evomoe.support.errors import OptionError


def test_the_range_that_matches_a_budget():
    assert matched(8, 0.2, 4) == (8, 12) and matched(7.2, 0.2, 4) == pytest.approx((7, 11))
    assert matched(4.8, 0.2, 4) == pytest.approx((4, 8))
    assert AnyExpertsRouter(D, R, k_min=2, k_max=6, budget=4.0).slots(1) == (3, 7)
    assert AnyExpertsRouter(D, R, budget=4.0, num_virtual=0).slots(2) == (3.5, 4.5)
    low, high = matched(1, 0.2, 4)
    assert low == 1 and high == pytest.approx(1.5)  # narrower, around the same middle
    with pytest.raises(ValueError, match="0.5 real experts per token are less than one slot; ask for 0.8 or more"):
        matched(0.5, 0.2, 4)


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
        ({"k_min": 2}, 1, "straight_through", "give both ends of the range, or neither"),
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


@pytest.mark.parametrize("options", [{"budget": 99.0}, {"cap_scope": "world"}, {"num_virtual": 3}])
def test_a_change_that_is_refused_changes_nothing(options):
    model = upcycle(make_llava(), router="anyexperts", gate="straight_through", num_experts_per_tok=2)
    before = [(block.router.options, block.moe) for block in model.moe_blocks.values()]
    written = model.config.to_dict()
    with pytest.raises(OptionError):
        set_router_options(model, **options)
    assert [(block.router.options, block.moe) for block in model.moe_blocks.values()] == before
    assert model.config.to_dict() == written


def test_a_wrong_number_of_experts_is_told_by_the_name_that_the_caller_knows():
    model = upcycle(make_llava(), router="anyexperts", gate="straight_through", num_experts_per_tok=2)
    for change, value in ((set_budget, 40), (set_cap_scope, "world"), (set_experts_per_token, float("inf"))):
        with pytest.raises(OptionError) as error:
            change(model, value)
        assert error.value.option in ("budget", "cap_scope", "experts_per_token"), change
