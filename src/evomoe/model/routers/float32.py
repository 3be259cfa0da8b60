"""Router arithmetic in float32, whatever the model's precision.

T tokens, I input features, P output features, N chosen tokens.
"""

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from evomoe.model.kept import kept


def in_float32(x_TD: Tensor) -> contextlib.AbstractContextManager[Any]:
    """No autocast within the block."""
    device = x_TD.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else contextlib.nullcontext()


def inverse_rms(x_TD: Tensor) -> Tensor:
    """One divided by each token's root mean square, (T, 1)."""
    return torch.rsqrt(torch.linalg.vector_norm(x_TD, dim=-1, keepdim=True).square() / x_TD.shape[-1] + 1e-6)


class Float32Weight(nn.Module):
    """A router's weight, computed with in float32 whatever it is stored in. Its owner draws it.

    It is not an ``nn.Linear``: quantisers and adapters look for those, and a router is to stay as it was trained. It is read
    in ``forward`` alone, where offloading has brought it from wherever it lies.

    Args:
        in_features: I.
        out_features: P.
        bias: whether it has one.
        transposed: store the weight as (I, P) instead of (P, I).
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, transposed: bool = False) -> None:
        super().__init__()
        self.transposed = transposed
        self.weight = nn.Parameter(torch.empty((in_features, out_features) if transposed else (out_features, in_features)))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def draw(self, std: float) -> None:
        """Draws fresh weights; the bias starts at zero."""
        nn.init.normal_(self.weight, std=std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def float_PI(self) -> Tensor:
        weight = self.weight if self.weight.dtype == torch.float32 else kept(self, self.weight.float)
        return weight.T if self.transposed else weight

    def product(self, x_TI: Tensor, rows_N: Tensor | None = None) -> Tensor:
        """x W^T, (T, P), for all tokens; or (N, P) for those whose indices ``rows_N`` holds."""
        weight_PI, x_TI = self.float_PI(), x_TI.float()
        return nn.functional.linear(x_TI, weight_PI) if rows_N is None else LinearOfRows.apply(x_TI, rows_N, weight_PI)


class Float32Linear(Float32Weight):
    """A router's linear map."""

    def forward(self, x_TI: Tensor, rows_N: Tensor | None = None, scale_T1: Tensor | None = None) -> Tensor:
        """(x W^T) scale + b, (T, P), for all tokens; or for those whose indices ``rows_N`` holds, with a scale for these."""
        out = self.product(x_TI, rows_N)
        out = out if scale_T1 is None else out * scale_T1
        return out if self.bias is None else out + self.bias.float()


class LinearOfRows(torch.autograd.Function):
    """``x[rows] @ weight.T`` that keeps ``x`` for the backward pass, not the gathered copy of it.

    A router with a network per modality would otherwise hold every token's hidden state a second time.
    """

    @staticmethod
    def forward(ctx, x_TI: Tensor, rows_N: Tensor, weight_PI: Tensor) -> Tensor:
        ctx.save_for_backward(x_TI, rows_N, weight_PI)
        return x_TI[rows_N] @ weight_PI.T

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        (gradient_NP,) = gradients
        x_TI, rows_N, weight_PI = ctx.saved_tensors
        x_gradient = weight_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = torch.zeros_like(x_TI).index_add_(0, rows_N, gradient_NP @ weight_PI)
        if ctx.needs_input_grad[2]:
            weight_gradient = gradient_NP.T @ x_TI[rows_N]
        return x_gradient, None, weight_gradient
