"""Named recipes: EvoMoE and what it is compared with. ``evomoe train --recipe NAME`` starts from one.

Implements: Table 1 (baselines), Table 2 (MoE-tuning).
"""

from dataclasses import replace

from evomoe.recipe.options import MoEOptions
from evomoe.recipe.recipe import Recipe

EVOMOE = Recipe(model="", data="", output="")

_BALANCE = {"balance": 0.001}
_TRAIN_EXPERTS = replace(EVOMOE.stage3, train="router+experts")

RECIPES: dict[str, Recipe] = {
    "evomoe": EVOMOE,
    "dense": EVOMOE.but(stages=(1,)),
    "moe-llava": EVOMOE.but(
        stages=(1, 3),
        expert_init="replicate",
        moe=MoEOptions(
            num_experts_per_tok=2, router="linear", gate="normalised", aux_losses={"balance": 0.01}, aux_reduction="sum"
        ),
        stage3=_TRAIN_EXPERTS,
    ),
    "qwen-moe": EVOMOE.but(
        stages=(1, 3),
        expert_init="replicate",
        moe=MoEOptions(router="linear", gate="probability", shared_expert=True, aux_losses=_BALANCE),
        stage3=_TRAIN_EXPERTS,
    ),
    "drop-upcycling": EVOMOE.but(
        stages=(1, 3),
        expert_init="drop_upcycling",
        moe=MoEOptions(num_experts_per_tok=2, router="linear", gate="normalised", aux_losses=_BALANCE),
        stage3=_TRAIN_EXPERTS,
    ),
}
"""A row is a recipe without model, data and output. "evomoe" is the paper's; "moe-llava" copies the FFN and trains experts and
a linear router together, two experts per token; "qwen-moe" adds a shared expert."""
