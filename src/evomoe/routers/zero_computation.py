"""Zero-computation experts as in MoE++ (arXiv 2410.07348): a fixed number of slots, of which some run no network.

A baseline beside AnyExperts: here nothing but the scores decides which tokens get fewer real experts.
"""

from torch import Tensor

from evomoe.modality import Modality
from evomoe.routers.base import VirtualRouter


class ZeroComputationRouter(VirtualRouter):
    """One linear map that scores real and virtual experts alike; the top k of all are chosen.

    MoE++'s own constants are mixed with the token by a learned gate, and its routers pass scores from layer to layer: here
    they do not.

    Args:
        zero, identity, constant: how many virtual experts there are of each kind.
    """

    def __init__(self, hidden_size: int, num_experts: int, zero: int = 1, identity: int = 1, constant: int = 2) -> None:
        counts = {"zero": zero, "identity": identity, "constant": constant}
        if min(counts.values()) < 0:
            raise ValueError(f"router 'zero_computation': the numbers of virtual experts must not be negative: {counts}.")
        super().__init__(hidden_size, num_experts, [kind for kind, count in counts.items() for _ in range(count)])

    def forward(self, x_TD: Tensor, modality: Modality) -> Tensor:
        return self.gate(x_TD)
