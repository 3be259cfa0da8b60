"""Where experts come from: one file per initialiser, one row per name.

An initialiser takes the dense FFN of one layer and returns the experts of that layer. To add one, write its file and its
row here; the tests pick it up from this table.
"""

from typing import Any

from evomoe.conversion.expert_init.drop_upcycling import DropUpcyclingOptions, drop_upcycling
from evomoe.conversion.expert_init.evolved import evolved
from evomoe.conversion.expert_init.expert_init import ExpertInit
from evomoe.conversion.expert_init.noise import NoiseOptions, noise
from evomoe.conversion.expert_init.partition import partition
from evomoe.conversion.expert_init.replicate import replicate
from evomoe.recipe.init_options import EvolvedOptions
from evomoe.support.rows import check_row

INITS: dict[str, ExpertInit] = {
    "replicate": ExpertInit(replicate),
    "noise": ExpertInit(noise, NoiseOptions),
    "evolved": ExpertInit(evolved, EvolvedOptions),
    "drop_upcycling": ExpertInit(drop_upcycling, DropUpcyclingOptions),
    "partition": ExpertInit(partition, slices=True),
}


def config_fields(name: str, num_experts: int) -> dict[str, Any]:
    """The fields of ``MoEConfig`` that an initialiser decides.

    Raises:
        OptionError: there is no such initialiser, or its row holds something else.
    """
    check_row("expert_init", name, INITS, made_by=ExpertInit)
    return {"expert_init": name, "expert_share": num_experts if INITS[name].slices else 1}


def option_from_stage2(name: str) -> str:
    """The option of an initialiser that Stage II's file goes into; empty if it needs none, or does not exist."""
    return INITS[name].Options.from_stage2 if name in INITS else ""


__all__ = ["INITS", "ExpertInit", "config_fields", "option_from_stage2"]
