"""Zero-computation experts as in MoE++ (arXiv 2410.07348): a fixed number of slots, of which some run no network.

A baseline beside AnyExperts: here nothing but the scores decides which tokens get fewer real experts.
"""

from torch import Tensor

from evomoe.model.modality import Modality
from evomoe.model.routers.virtual_router import VirtualRouter
from evomoe.recipe.router_options import SlotKind, ZeroComputationOptions


class ZeroComputationRouter(VirtualRouter[ZeroComputationOptions]):
    """One linear map that scores real and virtual experts alike; the top k of all are chosen.

    MoE++'s own constants are mixed with the token by a learned gate, and its routers pass scores from layer to layer: here
    they do not.
    """

    Options = ZeroComputationOptions

    def virtual_kinds(self) -> list[SlotKind]:
        return self.options.kinds()

    def forward(self, x_TD: Tensor, modality: Modality) -> Tensor:
        return self.gate(x_TD)
