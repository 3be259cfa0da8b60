"""The recipes that several tables share."""

from dataclasses import replace

from evomoe.paper.tables.table import FINE_TUNE, FROM_STAGE1
from evomoe.recipe.named_recipes import RECIPES

DENSE = FROM_STAGE1.but(stages=(1,))
"""The dense model, fine-tuned: in small for as many steps as the others take in all their stages, at the paper's scale once, as there."""

DENSE_FFN = DENSE.but(stage1=replace(DENSE.stage1, train="ffn"))
"""The same, but what Stage II trains is trained alone."""

MOE_TUNING = RECIPES["moe-llava"].but(data=FINE_TUNE, stages=(3,))
"""Copies of the FFN and a linear router, trained together, two experts per token."""

MOE_TUNING_DTR = MOE_TUNING.but(router="dtr")
EVOLUTION_LINEAR = FROM_STAGE1.but(router="linear")
EVOMOE = FROM_STAGE1
EVOMOE_ALL = FROM_STAGE1.but(
    moe_layers="all",
    num_experts_per_tok=2,
    gate="normalised",
    stage2=replace(FROM_STAGE1.stage2, train=DENSE.stage1.train, epochs=1.375),
    stage3=replace(FROM_STAGE1.stage3, epochs=0.25),
)
"""What trials of the mini study led to (docs/log.md): Stage II trains all that the dense row trains and takes, in small, 11 of 12
steps; every layer is sparse and two experts run."""
