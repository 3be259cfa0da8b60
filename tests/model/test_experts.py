"""The expert loop and grouped_mm against one token at a time."""

import copy

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from evomoe.model.experts import Experts

D, F, E = 16, 24, 4


def make_experts(**fields) -> Experts:
    torch.manual_seed(0)
    return Experts([LlamaMLP(LlamaConfig(hidden_size=D, intermediate_size=F, num_attention_heads=2, **fields)) for _ in range(E)])


def make_routing(T: int, K: int, empty_slots: bool = False, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x_TD = torch.randn(T, D, generator=generator)
    index_TK = torch.rand(T, E + empty_slots, generator=generator).argsort(-1)[:, :K]
    return x_TD, index_TK, torch.rand(T, K, generator=generator)


def token_by_token(experts: Experts, x_TD, index_TK, weight_TK) -> torch.Tensor:
    out_TD = torch.zeros_like(x_TD)
    for t in range(len(x_TD)):
        for k, e in enumerate(index_TK[t].tolist()):
            if e < len(experts):
                out_TD[t] += weight_TK[t, k] * experts[e](x_TD[t : t + 1])[0]
    return out_TD


needs_grouped_mm = pytest.mark.skipif(not hasattr(torch.nn.functional, "grouped_mm"), reason="grouped_mm came with torch 2.10")


@pytest.mark.parametrize("implementation", ["auto", "loop", pytest.param("grouped_mm", marks=needs_grouped_mm)])
@pytest.mark.parametrize("T", [1, 2, 33])
@pytest.mark.parametrize("K", [1, 3])
@pytest.mark.parametrize("empty_slots", [False, True])
def test_experts_equal_one_token_at_a_time(implementation, T, K, empty_slots):
    experts = make_experts()
    experts.implementation = implementation
    routing = make_routing(T, K, empty_slots)
    with torch.no_grad():
        torch.testing.assert_close(experts(*routing), token_by_token(experts, *routing), atol=1e-6, rtol=1e-5)


@needs_grouped_mm
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("empty_slots", [False, True])
def test_grouped_mm_has_the_gradients_of_the_loop(frozen, empty_slots):
    results = []
    for implementation in ("loop", "grouped_mm"):
        experts = make_experts().requires_grad_(not frozen)
        experts.implementation = implementation
        x_TD, index_TK, weight_TK = make_routing(33, 2, empty_slots)
        leaves = [x_TD.requires_grad_(), weight_TK.requires_grad_(), *([] if frozen else experts.parameters())]
        results.append(torch.autograd.grad(experts(x_TD, index_TK, weight_TK).sin().sum(), leaves))
    for loop, grouped in zip(*results, strict=True):
        torch.testing.assert_close(loop, grouped, atol=1e-5, rtol=1e-4)


@needs_grouped_mm
def test_packed_experts_share_one_storage_and_stay_right_when_weights_change():
    experts = make_experts().requires_grad_(False)
    experts.implementation = "grouped_mm"
    routing = make_routing(9, 1)
    torch.testing.assert_close(experts(*routing), token_by_token(experts, *routing), atol=1e-6, rtol=1e-5)
    experts.pack()
    storages = {expert.up_proj.weight.untyped_storage().data_ptr() for expert in experts}
    assert len(storages) == 1
    experts[1].up_proj.weight.data.mul_(3)
    torch.testing.assert_close(experts(*routing), token_by_token(experts, *routing), atol=1e-6, rtol=1e-5)
    twin = copy.deepcopy(experts)
    twin[2].down_proj.weight.data = torch.zeros(D, F)
    torch.testing.assert_close(twin(*routing), token_by_token(twin, *routing), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(experts(*routing), token_by_token(experts, *routing), atol=1e-6, rtol=1e-5)


def test_experts_that_train_or_that_grouped_mm_cannot_run_are_not_packed():
    for experts in (make_experts(), make_experts(mlp_bias=True).requires_grad_(False)):
        experts.pack()
        assert len({expert.up_proj.weight.untyped_storage().data_ptr() for expert in experts}) == len(experts)


def test_an_expert_without_tokens_is_not_run_unless_it_trains():
    x_TD, weight = torch.randn(5, D), torch.ones(5, 1)
    index_TK = torch.full((5, 1), 2)
    for trains, expected in ((False, [2]), (True, [0, 1, 2, 3])):
        experts = make_experts().requires_grad_(trains)
        ran: list[int] = []
        for e, expert in enumerate(experts):
            expert.register_forward_hook(lambda *_, e=e, ran=ran: ran.append(e))
        experts(x_TD, index_TK, weight)
        assert ran == expected


def test_grouped_mm_refuses_experts_that_it_cannot_run():
    experts = make_experts(mlp_bias=True)
    assert not experts.grouped.is_possible()
    experts.implementation = "grouped_mm"
    with pytest.raises(ValueError, match="implementation to 'loop'"):
        experts(*make_routing(4, 1))


@pytest.mark.gpu
@pytest.mark.parametrize("empty_slots", [False, True])
def test_on_cuda_in_bfloat16_grouped_mm_is_chosen_and_equals_the_loop(empty_slots):
    experts = make_experts().requires_grad_(False).to("cuda", torch.bfloat16)
    assert not experts.grouped.pays(torch.zeros(1, D, device="cuda", dtype=torch.bfloat16))
    experts.pack()
    x_TD, index_TK, weight_TK = (t.cuda() for t in make_routing(64, 2, empty_slots))
    x_TD = x_TD.bfloat16().requires_grad_()
    assert experts.grouped.pays(x_TD)
    results = []
    for implementation in ("auto", "loop"):
        experts.implementation = implementation
        out_TD = experts(x_TD, index_TK, weight_TK)
        results.append((out_TD, *torch.autograd.grad(out_TD.float().sin().sum(), x_TD)))
    for fast, loop in zip(*results, strict=True):
        torch.testing.assert_close(fast, loop, atol=2e-2, rtol=2e-2)
