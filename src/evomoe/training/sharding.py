"""A parameter that may be spread over several processes: whole, or sharded by FSDP2 (a DTensor) or by DeepSpeed's ZeRO-3."""

from typing import TYPE_CHECKING, TypeGuard

from torch import Tensor

from evomoe.training import zero3

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(parameter: Tensor) -> bool:
    """Whether each process holds only a part of it."""
    return _by_fsdp(parameter) or zero3.is_sharded(parameter)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a parameter or of its gradient; the tensor itself where nothing is sharded."""
    if zero3.is_sharded(tensor):
        return zero3.local(tensor)
    return tensor.to_local() if _by_fsdp(tensor) else tensor


def whole(part: Tensor, parameter: Tensor) -> Tensor:
    """The whole tensor, on the CPU, of parts that are spread as the parameter is. Every process must call."""
    if zero3.is_sharded(parameter):
        return zero3.whole(part, parameter)
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
    if zero3.is_sharded(parameter):
        return zero3.scatter(tensor, parameter)
    if _by_fsdp(parameter):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements).to_local()
    return tensor


def _by_fsdp(parameter: Tensor) -> "TypeGuard[DTensor]":
    return hasattr(parameter, "placements")
