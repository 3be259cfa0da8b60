"""What training under DeepSpeed's ZeRO-3 needs besides: each process holds a part of every weight between two uses.

A module's weights are gathered from all processes before it runs, so that all processes must run the same modules in the same order.
"""

from typing import Any

import torch
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.modeling_utils import PreTrainedModel

from evomoe.model.sparse_model import is_sparse


def load_whole() -> None:
    """Lets transformers load models whole from now on, though a stage before was shared out; its weights are gone by then."""
    unset_hf_deepspeed_config()


def gather_by_layer(model: PreTrainedModel) -> None:
    """Lets each MoE layer have its weights as long as it runs, forward and backward; call it before the model is shared out.

    Otherwise each linear map would gather its own, and an expert without tokens on one of the processes would run on the others alone.
    """
    from deepspeed.utils import set_z3_leaf_module

    for block in model.moe_blocks.values() if is_sparse(model) else ():
        set_z3_leaf_module(block, True)
        block.register_forward_pre_hook(_with_gradient)


def _with_gradient(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Makes what enters a layer need a gradient: DeepSpeed takes the layer for done, backward, when that is there, else too early."""
    hidden, *others = inputs
    if torch.is_grad_enabled() and not hidden.requires_grad:
        hidden = hidden.detach().requires_grad_()
    return (hidden, *others)
