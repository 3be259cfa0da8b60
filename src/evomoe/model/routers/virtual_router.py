"""What the routers share that have virtual experts."""

from collections.abc import Sequence
from typing import Any

from evomoe.model.routers.float32 import Float32Linear
from evomoe.model.routers.router import OwnOptions, Router
from evomoe.model.routers.virtual import VirtualExperts
from evomoe.recipe.router_options import SlotKind


class VirtualRouter(Router[OwnOptions]):
    """Base class of a router that has virtual experts and scores them beside the real ones by one linear map, ``gate``."""

    def __init__(self, hidden_size: int, num_experts: int, **options: Any) -> None:
        super().__init__(hidden_size, num_experts, **options)
        self.virtual = VirtualExperts(hidden_size, num_experts, self.virtual_kinds())
        self.gate = Float32Linear(hidden_size, num_experts + len(self.virtual), bias=False)
        self.reset_parameters()

    def virtual_kinds(self) -> Sequence[SlotKind]:
        """The kind of each virtual expert."""
        raise NotImplementedError(f"{type(self).__name__} must define virtual_kinds().")

    def reset_parameters(self) -> None:
        self.gate.draw(std=0.02)

    @property
    def virtual_experts(self) -> VirtualExperts:
        return self.virtual
