"""A parameter that may be spread over several processes: whole, or sharded by FSDP2 (a DTensor)."""

from typing import TYPE_CHECKING, TypeGuard

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(parameter: Tensor) -> "TypeGuard[DTensor]":
    """Whether each process holds only a part of it."""
    return hasattr(parameter, "placements")


def local(tensor: Tensor) -> Tensor:
    """This process's part of a parameter or of its gradient; the tensor itself where nothing is sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(part: Tensor, parameter: Tensor) -> Tensor:
    """The whole tensor, on the CPU, of parts that are spread as the parameter is. Every process must call."""
    if is_sharded(parameter):
        from torch.distributed.tensor import DTensor

        mesh = parameter.device_mesh
        sharded = DTensor.from_local(
            part.to(mesh.device_type), mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
        )
        return sharded.full_tensor().cpu().contiguous()
    return part.detach().cpu().contiguous()


def scatter(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of a whole tensor that is to be spread as the parameter is."""
    if is_sharded(parameter):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements).to_local()
    return tensor
