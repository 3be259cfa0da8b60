"""An MoE layer in a model that was sparse before: in the place of its experts, inside its own block."""

from typing import Any

from torch import Tensor, nn

from evomoe.model.block import EvoMoEBlock
from evomoe.model.configuration import MoEConfig
from evomoe.model.stacked_experts import StackedExperts
from evomoe.model.structure import find_sparse_ffn


class AttachedBlock(EvoMoEBlock):
    """Router and experts inside the block of a model that was sparse before, where its experts were.

    The block goes on to do what else it does, such as run a shared expert; what its own router said is not heeded.
    """

    @classmethod
    def put_into(cls, decoder_layer: nn.Module, layer: int, moe: MoEConfig, hidden_size: int) -> "AttachedBlock":
        """Takes the place of the experts in a decoder layer's block, and of its router."""
        found = find_sparse_ffn(decoder_layer, hidden_size)
        assert found is not None
        name, router = found
        block = decoder_layer.get_submodule(name)
        attached = cls(layer, moe, hidden_size, StackedExperts(block.get_submodule("experts")))
        block.set_submodule("experts", attached)
        setattr(block, router, NoRouter())
        return attached

    def forward(self, hidden_ND: Tensor, /, *of_no_router: None) -> Tensor:
        return super().forward(hidden_ND)


class NoRouter(nn.Module):
    """Stands where a block's own router was, and chooses nothing."""

    def forward(self, *args: Any) -> tuple[None, None, None]:
        return None, None, None
