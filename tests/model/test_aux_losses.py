"""Every row of the loss table, with known answers."""

import math
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from evomoe.model.aux_losses import AUX_LOSSES
from evomoe.model.configuration import MoEConfig
from evomoe.model.modality import Modality
from evomoe.model.routing import LayerRecord, Routing
from evomoe.support.needs import needs_of

E = 4


def record_of(probs_TE: torch.Tensor, index_TK: torch.Tensor | None = None, is_image_T=None, experts=()) -> LayerRecord:
    T = probs_TE.shape[0]
    index_TK = probs_TE.argmax(-1, keepdim=True) if index_TK is None else index_TK
    routing = Routing(probs_TE.log(), probs_TE, index_TK, probs_TE.gather(-1, index_TK.clamp(max=E - 1)))
    is_image_T = torch.zeros(T, dtype=torch.bool) if is_image_T is None else is_image_T
    return LayerRecord(
        routing, Modality.of(is_image_T[None], None), torch.randn(T, 8), experts or [nn.Linear(8, 8) for _ in range(E)]
    )


def one_hot(index: list[int]) -> torch.Tensor:
    return torch.eye(E)[index]


def test_balance_is_one_when_uniform_and_E_when_collapsed():
    balance = AUX_LOSSES["balance"]
    assert balance(record_of(one_hot([0, 1, 2, 3] * 3))).item() == pytest.approx(1.0)
    assert balance(record_of(one_hot([2] * 12))).item() == pytest.approx(E)


def test_balance_by_hand_without_a_gradient_through_the_fractions():
    probs_TE = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.2, 0.6, 0.1, 0.1]]).requires_grad_()
    value = AUX_LOSSES["balance"](record_of(probs_TE))
    assert value.item() == pytest.approx(4 * (0.5 * 0.45 + 0.5 * 0.35))
    value.backward()
    torch.testing.assert_close(probs_TE.grad, torch.tensor([[1.0, 1.0, 0.0, 0.0]] * 2))


def test_balance_counts_only_slots_that_hold_an_expert():
    index_TK = torch.tensor([[0, E], [1, E]])
    probs_TE = torch.full((2, E), 0.25)
    assert AUX_LOSSES["balance"](record_of(probs_TE, index_TK)).item() == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["balance", "z"])
def test_a_batch_without_tokens_costs_nothing(name):
    assert AUX_LOSSES[name](record_of(torch.empty(0, E))).item() == 0


def test_local_is_minus_the_mutual_information_of_token_and_expert_per_modality():
    local = AUX_LOSSES["local"]
    assert local(record_of(torch.full((8, E), 0.25))).item() == pytest.approx(0.0, abs=1e-6)
    assert local(record_of(one_hot([0, 1, 2, 3] * 2))).item() == pytest.approx(-math.log(E))
    # Every image token to one expert, every text token to another: no information within a modality.
    is_image_T = torch.tensor([True] * 4 + [False] * 4)
    assert local(record_of(one_hot([1] * 4 + [2] * 4), is_image_T=is_image_T)).item() == pytest.approx(0.0, abs=1e-6)


def test_contrastive_is_log_E_for_equal_experts_and_low_for_experts_with_outputs_of_their_own():
    contrastive = AUX_LOSSES["contrastive"]
    shared = nn.Linear(8, 8)
    probs_TE = torch.full((20, E), 0.25)
    assert contrastive(record_of(probs_TE, experts=[shared] * E)).item() == pytest.approx(math.log(E), abs=1e-5)

    class Constant(nn.Module):
        def __init__(self, e: int) -> None:
            super().__init__()
            self.e = e

        def forward(self, x_TD):
            return torch.eye(8)[self.e].expand_as(x_TD)

    distinct = contrastive(record_of(probs_TE, experts=[Constant(e) for e in range(E)])).item()
    assert distinct == pytest.approx(math.log(1 + (E - 1) * math.exp(-10)), abs=1e-5)


@pytest.mark.parametrize("T", [1, 2])
@pytest.mark.parametrize("name", AUX_LOSSES)
def test_a_loss_of_very_few_tokens_is_finite(name, T):
    record = record_of(torch.full((T, E), 0.25))
    routing = replace(record.routing, importance_T=torch.zeros(T), excess_T=torch.full((T,), 0.1))
    assert AUX_LOSSES[name](replace(record, routing=routing)).isfinite()


def test_importance_by_hand():
    record = record_of(torch.full((2, E), 0.25))
    routing = replace(record.routing, importance_T=torch.tensor([1.0, 3.0]))
    assert AUX_LOSSES["importance"](replace(record, routing=routing)) == 4.0


def test_budget_by_hand():
    record = record_of(torch.full((2, E), 0.25))
    routing = replace(record.routing, excess_T=torch.tensor([-0.75, -0.25]))
    assert AUX_LOSSES["budget"](replace(record, routing=routing)) == 0.25


@pytest.mark.parametrize("name", [name for name, loss in AUX_LOSSES.items() if {*needs_of(loss)} - {"experts"}])
def test_a_loss_of_what_a_router_does_not_give_is_refused_with_the_configuration(name):
    layers = {"moe_layers": [0], "num_experts": 4, "num_experts_per_tok": 2, "aux_losses": {"balance": 0.1, name: 0.1}}
    for router in ("linear", "dtr+shared", "top_p"):
        with pytest.raises(
            ValueError, match=f"^aux_losses: '{name}' is for router anyexperts, not for '{re.escape(router)}'; leave"
        ):
            MoEConfig(router=router, **layers)
    assert MoEConfig(router="anyexperts", **layers).aux_losses[name] == 0.1


def test_z_is_the_square_of_the_logarithm_of_the_softmax_s_divisor():
    z, uniform = AUX_LOSSES["z"], torch.full((3, E), 1 / E)
    assert z(record_of(uniform)).item() == pytest.approx(0.0)  # its logits are log(1/4)
    shifted = replace(record_of(uniform), routing=replace(record_of(uniform).routing, logits=torch.full((3, E), 2.0)))
    assert z(shifted).item() == pytest.approx((2 + math.log(E)) ** 2)
