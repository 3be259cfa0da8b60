"""A study of our own, in the way of the paper's tables: does a variable number of experts pay, and what of it does?

The dense model's FFNs, cut into 16 experts in every layer. All rows train experts and router for the same steps, half as many as in
the paper's tables.
"""

from dataclasses import replace

from evomoe.analysis.intervention import Intervention
from evomoe.paper.tables.experts_curve import against_fixed
from evomoe.paper.tables.table import FINE_TUNE, Row, Table
from evomoe.recipe.named_recipes import RECIPES
from evomoe.recipe.recipe import Recipe

_FINE_GRAINED = RECIPES["moe-llava"].but(
    data=FINE_TUNE,
    stages=(3,),
    moe_layers="all",
    expert_init="partition",
    num_experts=16,
    num_experts_per_tok=8,
    gate="straight_through",
    aux_losses={"balance": 0.01},
    aux_reduction="mean",
    stage3=replace(RECIPES["moe-llava"].stage3, epochs=0.5),
)
_ANY = _FINE_GRAINED.but(
    router="anyexperts", router_options={"importance_width": 16}, aux_losses={"balance": 0.01, "importance": 0.001}
)


def _any(**options) -> Recipe:
    return _ANY.but(router_options=_ANY.moe.router_options | options)


def _at(experts_per_token: float, shuffle_importance: int | None = None) -> Intervention:
    return Intervention(experts_per_token=experts_per_token, shuffle_importance=shuffle_importance)


TABLE = Table(
    "anyexperts",
    "A variable number of experts",
    (
        Row("top8", "top-8 of 16", _FINE_GRAINED),
        *(Row(f"top8-at{k}", f"the same, {k} when it answers", _FINE_GRAINED, intervention=_at(k)) for k in (7, 6, 5, 4)),
        Row("top5", "top-5", _FINE_GRAINED.but(num_experts_per_tok=5)),
        Row("any8", "AnyExperts, budget 8", _ANY),
        *(Row(f"any8-at{k:g}", f"the same, {k:g} when it answers", _ANY, intervention=_at(k)) for k in (8.0, 7.2, 6.4, 5.6, 4.8)),
        Row("any8-shuffled", "the same at 8, importance of other tokens", _ANY, intervention=_at(8.0, shuffle_importance=1)),
        Row(
            "any8-shuffled-at4.8",
            "the same at 4.8, importance of other tokens",
            _ANY,
            intervention=_at(4.8, shuffle_importance=1),
        ),
        Row("any4.8", "AnyExperts, budget 4.8", _any(budget=4.8)),
        Row("identity", "budget 8, virtual experts that are the identity", _any(virtual="identity")),
        Row("constant", "budget 8, virtual experts that are constants", _any(virtual="constant")),
        Row("expectation", "budget 8, no cap but the balance loss", _any(cap_scope="expectation")),
        Row("batch", "budget 8, cap by batch in training, by token in answers", _any(cap_scope="batch")),
        Row("top_p", "top-p, p = 0.6", _FINE_GRAINED.but(router="top_p", router_options={"p": 0.6})),
        Row(
            "zero_computation",
            "top-10 of 16 and 4 zero-computation experts",
            _FINE_GRAINED.but(router="zero_computation", num_experts_per_tok=10),
        ),
    ),
    average=True,
    baseline="top8",
    comparisons=(
        ("any8-at7.2", "any8-at8"),
        ("any8-at4.8", "any8-at8"),
        ("any8-shuffled", "any8-at8"),
        ("any8-shuffled-at4.8", "any8-at4.8"),
        ("top8-at5", "top5"),
        ("any8-at4.8", "top5"),
        ("any4.8", "top5"),
        ("any8-at4.8", "any4.8"),
        *((name, "any8") for name in ("identity", "constant", "expectation", "batch")),
    ),
    supplement=against_fixed,
    notes=(
        "Each row trains for 300 steps.",
        "A budget is what a token of middling importance has if it uses its cap to the full. When it answers, the range is moved to where the "
        "mean on 20 questions of each validation set is the number that the row names.",
        "8 to 4.8 real experts is the paper's mark for images and video (-40 %), 8 to 7.2 the one for text in pictures (-10 %).",
    ),
    seeds=3,
    counts_experts=True,
)
