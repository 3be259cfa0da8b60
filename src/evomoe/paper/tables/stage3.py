"""A study of our own: what could make the whole better than dense, now that the router learns from all experts."""

from dataclasses import replace

from evomoe.paper.tables import rows
from evomoe.paper.tables.table import FINE_TUNE, FROM_STAGE1, MIX, Row, Table
from evomoe.recipe.recipe import Recipe

_TOP2 = {"num_experts_per_tok": 2, "gate": "normalised"}
_EXPERTS = {"stage3": rows.MOE_TUNING.stage3, "router_gradient": "all"}
_FROM_COPIES = {"expert_init": "replicate"}
_WIDE = ((0.95, 1.0), (0.6, 0.8), (0.2, 0.4))
"""From an expert that stays near the model of Stage I to one that is nearly expert 1."""


def _on_mix(recipe: Recipe) -> Recipe:
    """The last stage sees both mixes."""
    last = f"stage{recipe.stages[-1]}"
    return recipe.but(**{last: replace(recipe.stage(recipe.stages[-1]), data=MIX)})


_LINEAR_TOP2 = rows.EVOLUTION_LINEAR.but(**_TOP2)
_ALL_LINEAR = rows.EVOMOE_ALL.but(router="linear")
_ALL_EXPERTS = _ALL_LINEAR.but(stage2=replace(rows.EVOMOE_ALL.stage2, epochs=1.0), **_EXPERTS)
_DENSE_IN_TWO = FROM_STAGE1.but(
    data=FINE_TUNE, stages=(0, 1), stage0=replace(rows.DENSE.stage1, data=None), stage1=rows.DENSE.stage1
)

TABLE = Table(
    "stage3",
    "What Stage III can bring",
    (
        Row("dense", "dense", rows.DENSE),
        Row("moe-tuning", "MoE-tuning", rows.MOE_TUNING),
        Row("dtr", "(a) EvoMoE", rows.EVOMOE),
        Row("dtr-chosen", "(a) the same, gradient of the chosen expert", rows.EVOMOE.but(router_gradient="chosen")),
        Row("linear", "(a) linear router", rows.EVOLUTION_LINEAR),
        Row("linear-chosen", "(a) the same, gradient of the chosen expert", rows.EVOLUTION_LINEAR.but(router_gradient="chosen")),
        Row("dtr-top2", "(a) EvoMoE, top-2", FROM_STAGE1.but(**_TOP2)),
        Row("linear-top2", "(a) linear router, top-2", _LINEAR_TOP2),
        Row("all-dtr", "(b) all layers, top-2, all of the language model in Stage II", rows.EVOMOE_ALL),
        Row("all-linear", "(b) the same, linear router", _ALL_LINEAR),
        Row("dense-mix", "dense, both mixes in its last 200 steps", _on_mix(_DENSE_IN_TWO)),
        Row("mix-dtr", "(c) EvoMoE, both mixes in Stage III", _on_mix(rows.EVOMOE)),
        Row("mix-linear", "(c) the same, linear router", _on_mix(rows.EVOLUTION_LINEAR)),
        Row("wide-dtr", "(d) EvoMoE, wider ranges of beta", FROM_STAGE1.but(beta_ranges=_WIDE)),
        Row("wide-linear", "(d) the same, linear router", rows.EVOLUTION_LINEAR.but(beta_ranges=_WIDE)),
        Row("experts-dtr", "(e) EvoMoE, experts train in Stage III", FROM_STAGE1.but(**_EXPERTS)),
        Row("copies-dtr", "(e) the same from copies of expert 1", FROM_STAGE1.but(**_EXPERTS, **_FROM_COPIES)),
        Row("experts-top2", "(e) linear router, top-2, experts train in Stage III", _LINEAR_TOP2.but(**_EXPERTS)),
        Row("copies-top2", "(e) the same from copies of expert 1", _LINEAR_TOP2.but(**_EXPERTS, **_FROM_COPIES)),
        Row("experts-all", "(e) as (b), linear, experts train in Stage III", _ALL_EXPERTS),
        Row("copies-all", "(e) the same from copies of expert 1", _ALL_EXPERTS.but(**_FROM_COPIES)),
        Row("dense-4x", "(f) dense, four times the steps", rows.DENSE, longer=4),
        Row("moe-tuning-4x", "(f) MoE-tuning, four times the steps", rows.MOE_TUNING, longer=4),
        Row("dtr-4x", "(f) EvoMoE, four times the steps", rows.EVOMOE, longer=4),
        Row("experts-4x", "(f) (e) of all layers, four times the steps", _ALL_EXPERTS, longer=4),
        Row("copies-4x", "(f) the same from copies of expert 1", _ALL_EXPERTS.but(**_FROM_COPIES), longer=4),
    ),
    average=True,
    baseline="dense",
    comparisons=(
        *((name, f"{name}-chosen") for name in ("dtr", "linear")),
        *((name, "dense-mix") for name in ("mix-dtr", "mix-linear")),
        *((f"experts-{kind}", f"copies-{kind}") for kind in ("dtr", "top2", "all", "4x")),
        *((name, "dense-4x") for name in ("moe-tuning-4x", "dtr-4x", "experts-4x", "copies-4x")),
    ),
    notes=(
        "In (c) the last 200 steps see as many records of Stage I's mix as of the fine-tuning mix.",
        "Rows of four times the steps see new records throughout.",
    ),
    seeds=3,
)
