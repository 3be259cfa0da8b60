"""What depends on the contents of tensors, without waiting for a GPU in every layer.

T tokens, N numbers.
"""

import torch
from torch import Tensor


def occurrences(index: Tensor, count: int) -> Tensor:
    """How often each number below ``count`` stands in an index of any shape, (count,) int64. ``bincount`` would wait for a GPU."""
    index_N = index.reshape(-1).clamp(max=count)
    counted = torch.zeros(count + 1, dtype=torch.int64, device=index.device)
    return counted.scatter_add_(0, index_N, torch.ones_like(index_N))[:count]


def places(is_there_T: Tensor, device: torch.device) -> Tensor:
    """Where a mask in the memory of the CPU is true, (M,) int64 on a device."""
    return is_there_T.nonzero().squeeze(-1).to(device, non_blocking=True)


def places_of_kinds(is_image_T: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where the tokens of each kind are, on a device: image tokens (V,), text tokens (T - V,), int64. It waits for a GPU once.

    Args:
        is_image_T: (T,) bool, on any device; in the memory of the CPU nothing waits.
    """
    is_image_T = is_image_T.cpu()
    return places(is_image_T, device), places(~is_image_T, device)
