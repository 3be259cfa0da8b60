"""What training under DeepSpeed's ZeRO-3 needs besides: each process holds a part of every weight between two uses.

A module's weights are gathered from all processes before it runs, so that all processes must run the same modules in the same order.

Between two uses a parameter is empty. Its ``ds_tensor`` is this process's part of it, flat, and as large on each process; what is left
at the end is padding.
"""

from typing import Any, TypeGuard

import torch
from torch import Tensor
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.modeling_utils import PreTrainedModel

from evomoe.model.attached_block import AttachedBlock
from evomoe.model.block import EvoMoEBlock


def load_whole() -> None:
    """Lets transformers load models whole from now on, though a stage before was shared out; its weights are gone by then."""
    unset_hf_deepspeed_config()


def gather_by_layer(model: PreTrainedModel) -> None:
    """Lets each MoE layer have its weights as long as it runs, forward and backward; call it before the model is shared out.

    Otherwise each linear map would gather its own, and an expert without tokens on one of the processes would run on the others alone.
    """
    from deepspeed.utils import set_z3_leaf_module

    for name, module in model.named_modules():
        if isinstance(module, EvoMoEBlock):
            # The block of a model that was sparse before is gathered as a whole, as DeepSpeed does with those that it knows.
            block = model.get_submodule(name.rpartition(".")[0]) if isinstance(module, AttachedBlock) else module
            set_z3_leaf_module(block, True)
            block.register_forward_pre_hook(_with_gradient)


def _with_gradient(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Makes what enters a layer need a gradient: DeepSpeed takes the layer for done, backward, when that is there, else too early."""
    hidden, *others = inputs
    if torch.is_grad_enabled() and not hidden.requires_grad:
        hidden = hidden.detach().requires_grad_()
    return (hidden, *others)


def is_sharded(parameter: Tensor) -> TypeGuard[Any]:
    """Whether each process holds a part of it."""
    return hasattr(parameter, "ds_tensor")


def local(parameter: Any) -> Tensor:
    """This process's part of a parameter, flat, without padding."""
    return parameter.ds_tensor[: max(0, parameter.ds_numel - _first(parameter))]


def whole(part: Tensor, parameter: Any) -> Tensor:
    """The whole tensor, on the CPU, of parts as ``local`` gives them. Every process must call."""
    group = parameter.ds_process_group
    padded = torch.zeros(parameter.ds_tensor.numel(), dtype=part.dtype, device=parameter.device)
    padded[: part.numel()] = part
    parts = [torch.empty_like(padded) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(parts, padded, group=group)
    return torch.cat(parts)[: parameter.ds_numel].view(parameter.ds_shape).cpu()


def scatter(tensor: Tensor, parameter: Any) -> Tensor:
    """This process's part of a whole tensor."""
    first = _first(parameter)
    return tensor.flatten()[first : first + parameter.ds_tensor.numel()].to(parameter.device)


def _first(parameter: Any) -> int:
    return parameter.ds_tensor.numel() * torch.distributed.get_rank(parameter.ds_process_group)
