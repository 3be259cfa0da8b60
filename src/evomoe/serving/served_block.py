"""MoE layers for servers that compile a model, replay its kernels and cut its sequences as they like.

No padding, no note of the forward pass, no shape that depends on the data: which tokens are images lies in one tensor that the server
fills before each pass.
"""

from copy import deepcopy
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

from evomoe.model.attached_block import AttachedBlock
from evomoe.model.block import EvoMoEBlock
from evomoe.model.fixed_shapes import FixedShapes
from evomoe.model.sparse_model import EvoMoEMixin


class ServedBlock(EvoMoEBlock):
    """An MoE layer that takes the kinds of its tokens from ``is_image_N``, (N,) bool for the longest pass, which a server sets."""

    is_image_N: Tensor

    def forward(self, hidden_BSD: Tensor, /) -> Tensor:
        x_TD = hidden_BSD.reshape(-1, hidden_BSD.shape[-1])
        modality = FixedShapes(self.is_image_N[: x_TD.shape[0]], None, (1, x_TD.shape[0]))
        return self.mixed(x_TD, self.route(x_TD, modality)).view(hidden_BSD.shape)

    def run_experts(self, x_TD: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
        """Kernels of servers know no slot without an expert, and may write into what they are given."""
        has_expert_TK = index_TK < self.moe.num_experts
        return self.experts(x_TD.clone(), index_TK.where(has_expert_TK, 0), weight_TK * has_expert_TK)

    @torch.no_grad()
    def most_slots(self) -> int:
        """How many experts a token has at most, those that are none included: what the router says of one token."""
        router, moe = deepcopy(self.router).to_empty(device="cpu").eval(), self.moe  # servers ask before there are weights
        for parameter in router.parameters():
            parameter.zero_()
        modality = FixedShapes(torch.zeros(1, dtype=torch.bool), None, (1, 1))
        return router.route(torch.zeros(1, router.hidden_size), modality, moe.num_experts_per_tok, moe.gate).index_TK.shape[1]


class ServedAttachedBlock(ServedBlock, AttachedBlock):
    """The same inside the block of a model that was sparse before."""

    def forward(self, hidden_ND: Tensor, /, *of_no_router: None) -> Tensor:
        return super().forward(hidden_ND)


@cache
def served_class(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """A dense class of transformers with the MoE layers of servers in it."""
    members: dict[str, Any] = {
        "forward": base.forward,
        "base_class": base,
        "block_class": ServedBlock,
        "attached_block_class": ServedAttachedBlock,
        "__module__": __name__,
        "__doc__": f"{base.__name__} with a mixture of experts, as servers run it.",
    }
    return type(f"Served{base.__name__}", (EvoMoEMixin, base), members)
