"""What the router learns from: the chosen expert alone, or all of them, as DenseMixer does (OpenReview 4HGIIekCx3).

The output of a layer is ``y = sum of w_e f_e(x)`` over the chosen experts e, whose weights are ``w_e = p_e / S``: p their
probability, S what the gate divides by (1 where it does not divide). The chosen experts alone tell the router whether the
layer's output should be larger, not whether another expert would have been better. Here the backward pass runs the experts
that were not chosen, too:

    dL/dp_e = <dL/dy, f_e(x)> / S       for every expert e, S taken for a constant

The forward pass is as it was, bit by bit. No gradient reaches an expert, or what lies before the layer, by way of an expert
that was not chosen.

T tokens, D hidden, R real experts, N of them with the virtual ones, K experts per token, S slots.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from evomoe.model.routers.virtual import VirtualExperts
from evomoe.model.routing import GATES, Routing
from evomoe.model.stacked_experts import AnyExperts
from evomoe.support.errors import OptionError
from evomoe.support.needs import needs_of


def learns_from_all(choice: str, experts: AnyExperts, routing: Routing) -> bool:
    """Whether the router's gradient is to be that of all experts.

    Args:
        choice: ``router_gradient`` of ``MoEOptions``.
        experts: of the layer.
        routing: where the tokens went.

    Raises:
        OptionError: it is to be, and the router cannot.
    """
    if choice == "chosen" or not torch.is_grad_enabled() or not routing.probs_TE.requires_grad:
        return False
    if choice == "auto" and (routing.weight_TE is None or any(p.requires_grad for p in experts.parameters())):
        return False
    if routing.weight_TE is None:
        raise OptionError("router_gradient", "this router has a `route` of its own that gives no `weight_TE`; choose 'chosen'.")
    return True


def chosen_weights(routing: Routing, gate: str) -> Tensor:
    """The weights (T, K) of the chosen experts: their values as they are, S taken for a constant in their gradient."""
    if not needs_of(GATES[gate]):  # it takes S for a constant itself
        return routing.weight_TK
    assert routing.weight_TE is not None
    own_TE = torch.nn.functional.pad(routing.weight_TE, (0, 1))  # a slot without an expert has no weight
    own_TK = own_TE.gather(1, routing.index_TK.clamp(max=own_TE.shape[1] - 1))
    return routing.weight_TK.detach() + (own_TK - own_TK.detach())


def with_gradient_of_others(
    y_TD: Tensor, x_TD: Tensor, routing: Routing, experts: AnyExperts, virtual: VirtualExperts | None, most: int
) -> Tensor:
    """The output of a layer, with a gradient for the probabilities of the experts that were not chosen.

    Args:
        y_TD: what the layer gives.
        x_TD: what its experts were given.
        routing: where the tokens went.
        experts, virtual: of the layer.
        most: so many of the experts that a token did not choose take part, drawn anew each time; their gradients are scaled
            so that their mean over many draws is that of all. 0 for all.
    """
    return _GradientOfOthers.apply(y_TD, routing.weight_TE, x_TD, routing.index_TK, experts, virtual, most)


class _GradientOfOthers(torch.autograd.Function):
    """Hands the output on. Its backward pass runs the experts that were not chosen, of which nothing is kept until then."""

    @staticmethod
    def forward(ctx: Any, y_TD, weight_TN, x_TD, index_TK, experts, virtual, most) -> Tensor:
        ctx.save_for_backward(x_TD, index_TK)
        ctx.experts, ctx.virtual, ctx.most, ctx.N = experts, virtual, most, weight_TN.shape[1]
        device = x_TD.device.type
        ctx.autocast = {"enabled": torch.is_autocast_enabled(device), "dtype": torch.get_autocast_dtype(device)}
        return y_TD.clone()  # not a view: some layers add to what they are given in place

    @staticmethod
    @once_differentiable
    # pyrefly: ignore[bad-override]: the decorator forgets the name of ctx
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_TD,), (x_TD, index_TK), R = gradients, ctx.saved_tensors, len(ctx.experts)
        is_chosen_TN = torch.zeros(len(x_TD), ctx.N + 1, dtype=torch.bool, device=x_TD.device)
        is_chosen_TN = is_chosen_TN.scatter(1, index_TK.clamp(max=ctx.N), True)[:, : ctx.N]
        # One column more, for slots without an expert: what is written there is not handed on.
        weight_gradient_TN = torch.zeros(len(x_TD), ctx.N + 1, dtype=torch.float32, device=x_TD.device)
        with torch.no_grad(), torch.autocast(x_TD.device.type, **ctx.autocast):
            index_TM, share_T1 = _others(is_chosen_TN[:, :R], ctx.most)
            y_SD, slots = ctx.experts.outputs(x_TD, index_TM)
            token_S = slots.token_of_S[: len(y_SD)]
            expert_S = index_TM.reshape(-1)[slots.slot_of_S[: len(y_SD)]]
            effect_S = (gradient_TD[token_S].float() * y_SD.float()).sum(-1)
            weight_gradient_TN[token_S, expert_S] = effect_S / share_T1[token_S, 0]
            if ctx.virtual is not None:
                for number, out_TD in enumerate(ctx.virtual.outputs(x_TD), start=R):
                    weight_gradient_TN[:, number] = (gradient_TD.float() * out_TD.float()).sum(-1)
        return gradient_TD, weight_gradient_TN[:, : ctx.N].masked_fill(is_chosen_TN, 0.0), *[None] * 5


def _others(is_chosen_TR: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Experts that were not chosen (T, M), R where there is none; and which share of all those they are, (T, 1)."""
    R = is_chosen_TR.shape[1]
    numbers_TR = torch.arange(R, device=is_chosen_TR.device).expand_as(is_chosen_TR)
    others_T1 = (~is_chosen_TR).sum(-1, keepdim=True)
    if not most or most >= R:
        return numbers_TR.masked_fill(is_chosen_TR, R), torch.ones_like(others_T1, dtype=torch.float32)
    lots_TR = torch.rand(is_chosen_TR.shape, device=is_chosen_TR.device).masked_fill(is_chosen_TR, -1.0)
    drawn_TM, index_TM = lots_TR.topk(most, dim=-1)
    share_T1 = others_T1.clamp(max=most) / others_T1.clamp(min=1)
    return index_TM.masked_fill(drawn_TM < 0, R), share_T1
