"""Who handles a token: one file per router, one row per name.

To add a router, write its file and its row here; the tests pick it up from this table.
"""

from evomoe.routers.anyexperts import AnyExpertsRouter
from evomoe.routers.dtr import DynamicTokenAwareRouter
from evomoe.routers.fixed import FixedRouter
from evomoe.routers.linear import LinearRouter
from evomoe.routers.modality import ModalityRouter
from evomoe.routers.router import Router
from evomoe.routers.shared import SharedDynamicTokenAwareRouter, SharedModalityRouter
from evomoe.routers.shuffled import ShuffledRouter
from evomoe.routers.top_p import TopPRouter
from evomoe.routers.zero_computation import ZeroComputationRouter

ROUTERS: dict[str, type[Router]] = {
    "linear": LinearRouter,
    "modality": ModalityRouter,
    "modality+shared": SharedModalityRouter,
    "dtr": DynamicTokenAwareRouter,
    "dtr+shared": SharedDynamicTokenAwareRouter,
    "fixed": FixedRouter,
    "shuffled": ShuffledRouter,
    "anyexperts": AnyExpertsRouter,
    "top_p": TopPRouter,
    "zero_computation": ZeroComputationRouter,
}

__all__ = ["ROUTERS", "Router"]
