"""A parameter that may be spread over several processes: whole, sharded by FSDP2 (a DTensor), or by DeepSpeed ZeRO-3."""

from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

    class Zero3Parameter(Tensor):
        """A parameter of which DeepSpeed keeps a part in each process."""

        ds_tensor: Tensor
        ds_numel: int
        ds_shape: torch.Size


def is_sharded(parameter: Tensor) -> bool:
    """Whether each process holds only a part of it."""
    return _is_dtensor(parameter) or _is_zero3(parameter)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a parameter or of its gradient; the tensor itself where nothing is sharded."""
    if _is_dtensor(tensor):
        return tensor.to_local()
    return tensor.ds_tensor if _is_zero3(tensor) else tensor


def whole(part: Tensor, parameter: Tensor) -> Tensor:
    """The whole tensor, on the CPU, of parts that are spread as the parameter is. Every process must call."""
    if _is_dtensor(parameter):
        from torch.distributed.tensor import DTensor

        mesh = parameter.device_mesh
        sharded = DTensor.from_local(
            part.to(mesh.device_type), mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
        )
        return sharded.full_tensor().cpu().contiguous()
    if _is_zero3(parameter):
        parts = [torch.empty_like(part) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, part)
        return torch.cat(parts)[: parameter.ds_numel].view(parameter.ds_shape).cpu()
    return part.detach().cpu().contiguous()


def scatter(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of a whole tensor that is to be spread as the parameter is.

    Raises:
        ValueError: the parameter is sharded by ZeRO-3, which cannot be resumed.
    """
    if _is_dtensor(parameter):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements).to_local()
    if _is_zero3(parameter):
        raise ValueError("Resuming Stage II under DeepSpeed ZeRO-3 is not supported; use ZeRO-2 or FSDP2.")
    return tensor


def _is_dtensor(tensor: Tensor) -> "TypeGuard[DTensor]":
    return hasattr(tensor, "placements")


def _is_zero3(tensor: Tensor) -> "TypeGuard[Zero3Parameter]":
    return hasattr(tensor, "ds_tensor")
