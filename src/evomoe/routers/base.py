"""What every router shares: from logits to the chosen experts and their weights.

Implements: Table 5 (d), Table 11 (top-k), Table 14 (b).

T tokens, D hidden, E experts, K experts per token. A router may have virtual experts, which are no networks: they are numbered
after the real ones, and E then counts both.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evomoe.modality import Modality
from evomoe.routers.virtual import VirtualExperts


class RouterWarning(UserWarning):
    """Options of a router do less than they seem to."""


@dataclass(frozen=True)
class Routing:
    """Where the tokens of one MoE layer went.

    Attributes:
        logits_TE: router scores, float32.
        probs_TE: their softmax, float32, or what else the router makes of them; a token's sum is 1.
        index_TK: chosen experts, int64. ``E`` and above mean "no expert": such a slot is skipped.
        weight_TK: what each chosen expert's output is multiplied by, float32.
        importance_T: how much each token matters, before the sigmoid, float32, of a router that estimates it.
        input_scale_T1: what the experts' inputs are multiplied by, float32, of a router that does so.
        excess: how far the mean number of real experts is from the budget, as a share of it, of a router that has a budget.
    """

    logits_TE: Tensor
    probs_TE: Tensor
    index_TK: Tensor
    weight_TK: Tensor
    importance_T: Tensor | None = None
    input_scale_T1: Tensor | None = None
    excess: Tensor | None = None


def probability(chosen_TK: Tensor, counted_TK: Tensor) -> Tensor:
    """w = p, as in Switch and MoE-LLaVA."""
    return chosen_TK


def normalised(chosen_TK: Tensor, counted_TK: Tensor) -> Tensor:
    """w = p / sum of the chosen p. With one expert per token this is 1, and the router gets no language gradient."""
    return chosen_TK / _sum(counted_TK)


def straight_through(chosen_TK: Tensor, counted_TK: Tensor) -> Tensor:
    """w = p / stop_gradient(sum of the chosen p): normalised in value (1 for K = 1), with the gradient of p alive."""
    return chosen_TK / _sum(counted_TK).detach()


def _sum(counted_TK: Tensor) -> Tensor:
    # Where an expert that does not count has all the probability, nothing is left for the others: no 0 / 0, and finite gradients.
    return counted_TK.sum(-1, keepdim=True).clamp(min=1e-20)


Gate = Callable[[Tensor, Tensor], Tensor]
"""Weights (T, K) from the chosen experts' probabilities (T, K), and from those of them that the sum is over, else 0."""

GATES: dict[str, Gate] = {
    "probability": probability,
    "normalised": normalised,
    "straight_through": straight_through,
}


class Router(nn.Module):
    """Base class: a subclass computes logits, this class turns them into a ``Routing``.

    Args:
        hidden_size: D.
        num_experts: E, real ones.

    Attributes:
        gives: the fields of a ``Routing`` that it fills in beyond the first four.
    """

    gives: tuple[str, ...] = ()

    def __init__(self, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.hidden_size, self.num_experts = hidden_size, num_experts

    def forward(self, x_TD: Tensor, modality: Modality) -> Tensor:
        """Scores every expert for every real token: float32 logits (T, E)."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(x_TD, modality) -> logits_TE.")

    def reset_parameters(self) -> None:
        """Draws fresh weights; called at construction and by the model's weight initialisation."""

    def route(self, x_TD: Tensor, modality: Modality, top_k: int, gate: str, dropout: float = 0.0) -> Routing:
        """Chooses ``top_k`` experts for each real token.

        Args:
            x_TD: normalised hidden states of the real tokens.
            modality: their kinds.
            top_k: K.
            gate: a name of ``GATES``.
            dropout: Table 14's expert dropout: during training, each expert is hidden from a token with this probability
                (a token that would keep fewer than K experts keeps all).
        """
        with in_float32(x_TD):
            logits_TE = self(x_TD.float(), modality)
        probs_TE = self.hide(logits_TE, dropout, top_k).softmax(-1)
        chosen_TK, index_TK = probs_TE.topk(top_k, dim=-1)
        return Routing(logits_TE, probs_TE, index_TK, GATES[gate](chosen_TK, chosen_TK))

    @property
    def virtual_experts(self) -> VirtualExperts | None:
        """Its virtual experts, if it has any."""
        return None

    def check(self, top_k: int, gate: str) -> None:
        """Raises ValueError if the router cannot choose so many experts, or weigh them so."""

    def after_step(self) -> None:
        """Called in training after each optimiser step."""

    def hide(self, logits_TE: Tensor, dropout: float, top_k: int) -> Tensor:
        """Expert dropout: in training, the logits of each hidden expert are -inf."""
        if dropout == 0 or not self.training:
            return logits_TE
        keep_TE = torch.rand_like(logits_TE) >= dropout
        keep_TE |= keep_TE.sum(-1, keepdim=True) < top_k
        return logits_TE.masked_fill(~keep_TE, float("-inf"))


def in_float32(x_TD: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Router arithmetic is float32 whatever the model's precision: no autocast within the block."""
    device = x_TD.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else contextlib.nullcontext()


class Float32Linear(nn.Module):
    """A router's linear map, computed in float32 whatever its weight is stored in.

    It is no ``nn.Linear``, for quantisers and adapters look for those and a router is to stay as it was trained. It reads
    its weight in ``forward`` alone, where offloading has brought it from wherever it lies.

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
        nn.Linear.reset_parameters(self)  # pyrefly: ignore[bad-argument-type]

    def forward(self, x_TI: Tensor, rows: Tensor | None = None, scale_T1: Tensor | None = None) -> Tensor:
        """(x W^T) scale + b, (T, P), for all tokens; or for those whose indices ``rows`` holds, with a scale for these."""
        weight = self.weight.float().T if self.transposed else self.weight.float()
        x_TI = x_TI.float()
        out = nn.functional.linear(x_TI, weight) if rows is None else LinearOfRows.apply(x_TI, rows, weight)
        out = out if scale_T1 is None else out * scale_T1
        return out if self.bias is None else out + self.bias.float()


class VirtualRouter(Router):
    """Base class of a router that has virtual experts and scores them beside the real ones by one linear map, ``gate``."""

    def __init__(self, hidden_size: int, num_experts: int, kinds: Sequence[str]) -> None:
        super().__init__(hidden_size, num_experts)
        self.virtual = VirtualExperts(hidden_size, num_experts, kinds)
        self.gate = Float32Linear(hidden_size, num_experts + len(self.virtual), bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.gate.weight, std=0.02)

    @property
    def virtual_experts(self) -> VirtualExperts:
        return self.virtual


class LinearOfRows(torch.autograd.Function):
    """``x[rows] @ weight.T`` that keeps ``x`` for the backward pass, not the gathered copy of it.

    A router with a network per modality would otherwise hold every token's hidden state a second time.
    """

    @staticmethod
    def forward(ctx, x_TD: Tensor, rows_N: Tensor, weight_PD: Tensor) -> Tensor:
        ctx.save_for_backward(x_TD, rows_N, weight_PD)
        return x_TD[rows_N] @ weight_PD.T

    @staticmethod
    def backward(ctx, gradient_NP: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        x_TD, rows_N, weight_PD = ctx.saved_tensors
        x_gradient = weight_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = torch.zeros_like(x_TD).index_add_(0, rows_N, gradient_NP @ weight_PD)
        if ctx.needs_input_grad[2]:
            weight_gradient = gradient_NP.T @ x_TD[rows_N]
        return x_gradient, None, weight_gradient
