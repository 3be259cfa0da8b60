"""Where experts come from: one file per initialiser, one row per name.

An initialiser takes the dense FFN of one layer and returns the experts of that layer. To add one, write its file and its
row here; the tests pick it up from this table.
"""

from evomoe.expert_init.base import ExpertInit
from evomoe.expert_init.drop_upcycling import drop_upcycling
from evomoe.expert_init.evolved import evolved
from evomoe.expert_init.noise import noise
from evomoe.expert_init.partition import partition
from evomoe.expert_init.replicate import replicate

INITS: dict[str, ExpertInit] = {
    "replicate": replicate,
    "noise": noise,
    "evolved": evolved,
    "drop_upcycling": drop_upcycling,
    "partition": partition,
}

__all__ = ["INITS", "ExpertInit"]
