"""A parameter that may be spread over several processes: whole, or sharded by FSDP2 (a DTensor) or by DeepSpeed's ZeRO-3.

Under ZeRO-3 a parameter is empty between two uses. Its ``ds_tensor`` is this process's part of it, flat, in parts of equal size; what
is left of the last parts is padding, which ``local`` leaves out.
"""

from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(parameter: Tensor) -> bool:
    """Whether each process holds only a part of it."""
    return _by_fsdp(parameter) or _by_zero3(parameter)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a parameter or of its gradient; the tensor itself where nothing is sharded."""
    if _by_zero3(tensor):
        size = tensor.ds_tensor.numel()
        first = size * torch.distributed.get_rank(tensor.ds_process_group)
        return tensor.ds_tensor[: max(0, min(size, tensor.ds_numel - first))]
    return tensor.to_local() if _by_fsdp(tensor) else tensor


def whole(part: Tensor, parameter: Tensor) -> Tensor:
    """The whole tensor, on the CPU, of parts that are spread as the parameter is. Every process must call."""
    if _by_zero3(parameter):
        size, group = parameter.ds_tensor.numel(), parameter.ds_process_group
        padded = torch.zeros(size, dtype=part.dtype, device=parameter.device)
        padded[: part.numel()] = part
        parts = [torch.empty_like(padded) for _ in range(torch.distributed.get_world_size(group))]
        torch.distributed.all_gather(parts, padded, group=group)
        return torch.cat(parts)[: parameter.ds_numel].view(parameter.ds_shape).cpu()
    if _by_fsdp(parameter):
        from torch.distributed.tensor import DTensor

        mesh = parameter.device_mesh
        sharded = DTensor.from_local(
            part.to(mesh.device_type), mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
        )
        return sharded.full_tensor().cpu().contiguous()
    return part.detach().cpu().contiguous()


def scatter(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of a whole tensor that is to be spread as the parameter is."""
    if _by_zero3(parameter):
        size = parameter.ds_tensor.numel()
        first = size * torch.distributed.get_rank(parameter.ds_process_group)
        return tensor.flatten()[first : first + size].to(parameter.device)
    if _by_fsdp(parameter):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements).to_local()
    return tensor


def _by_fsdp(parameter: Tensor) -> "TypeGuard[DTensor]":
    return hasattr(parameter, "placements")


def _by_zero3(parameter: Tensor) -> TypeGuard[Any]:
    return hasattr(parameter, "ds_tensor")
