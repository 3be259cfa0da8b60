"""Running a sparse model with other routers than its own, and putting its own back.

Implements: Table 3 (each expert alone), Table 10 (shuffles).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from transformers.modeling_utils import PreTrainedModel

from evomoe.routers.base import Router
from evomoe.routers.fixed import FixedRouter
from evomoe.routers.shuffled import ShuffledRouter


@contextmanager
def replaced_routers(model: PreTrainedModel, replace: Callable[[Router, int], Router]) -> Iterator[PreTrainedModel]:
    """Within the block, every MoE layer uses ``replace(its router, layer index)``."""
    own = {layer: block.router for layer, block in model.moe_blocks.items()}
    try:
        for layer, block in model.moe_blocks.items():
            block.router = replace(own[layer], layer).train(own[layer].training)
        yield model
    finally:
        for layer, block in model.moe_blocks.items():
            block.router = own[layer]


def only_expert(model: PreTrainedModel, expert: int):
    """Within the block, every token of every MoE layer goes to one expert (0 is the paper's expert 1), with weight 1."""
    return replaced_routers(model, lambda router, layer: FixedRouter(router.hidden_size, router.num_experts, expert))


def shuffled_routers(model: PreTrainedModel, seed: int):
    """Within the block, and in evaluation mode, every MoE layer's logits reach the experts in a permuted order."""
    return replaced_routers(
        model, lambda router, layer: ShuffledRouter(router.hidden_size, router.num_experts, router, seed * 1009 + layer)
    )
