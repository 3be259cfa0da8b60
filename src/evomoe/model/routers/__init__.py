"""Who handles a token: one file per router, one row per name.

To add a router, write its file and its row here; the tests pick it up from this table.
"""

from evomoe.model.routers.anyexperts import AnyExpertsRouter
from evomoe.model.routers.dtr import DynamicTokenAwareRouter
from evomoe.model.routers.fixed import FixedRouter
from evomoe.model.routers.linear import LinearRouter
from evomoe.model.routers.modality import ModalityRouter
from evomoe.model.routers.router import Router
from evomoe.model.routers.shared import SharedDynamicTokenAwareRouter, SharedModalityRouter
from evomoe.model.routers.shuffled import ShuffledRouter
from evomoe.model.routers.top_p import TopPRouter
from evomoe.model.routers.zero_computation import ZeroComputationRouter

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
ShuffledRouter.rows = ROUTERS

__all__ = ["ROUTERS", "Router"]
