"""What the router learns from: the gradient of all experts is that of the formula, costs nothing in value, and finds who is right."""

import io
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, MixtralConfig, MixtralForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from evomoe.conversion.attaching import attach
from evomoe.model.block import EvoMoEBlock
from evomoe.model.configuration import MoEConfig
from evomoe.model.experts import Experts
from evomoe.model.forward_pass import ForwardPass, running
from evomoe.model.modality import Modality
from evomoe.model.routers import ROUTERS as ROUTERS_TABLE
from evomoe.model.routers.linear import LinearRouter
from evomoe.model.routing import GATES, Routing
from evomoe.support.errors import OptionError

D, F, E, T = 16, 24, 4, 40

needs_grouped_mm = pytest.mark.skipif(not hasattr(torch.nn.functional, "grouped_mm"), reason="grouped_mm came with torch 2.10")


def make_block(router: str = "linear", num_experts: int = E, frozen: bool = True, **fields) -> EvoMoEBlock:
    torch.manual_seed(0)
    experts = [LlamaMLP(LlamaConfig(hidden_size=D, intermediate_size=F, num_attention_heads=2)) for _ in range(num_experts)]
    moe = MoEConfig(base_model_type="llama", moe_layers=[0], num_experts=num_experts, router=router, aux_losses={}, **fields)
    block = EvoMoEBlock(0, moe, D, Experts(experts)).train()
    block.experts.requires_grad_(not frozen)
    for parameter in block.router.parameters():  # so that experts differ in their scores, and constants are not zero
        nn.init.normal_(parameter, std=0.4)
    return block


def tokens(count: int = T, mean: float = 0.0, seed: int = 0) -> tuple[Tensor, Modality]:
    x_TD = torch.randn(count, D, generator=torch.Generator().manual_seed(seed)) + mean
    return x_TD, Modality.of((torch.arange(count) % 2 == 0)[None], None)


def run(block: EvoMoEBlock, x_TD: Tensor, modality: Modality) -> Tensor:
    with running(ForwardPass(modality)):
        return block(x_TD[None])[0]


def written_out(block: EvoMoEBlock, x_TD: Tensor, modality: Modality) -> Tensor:
    """The formula: every expert's output, chosen or not, times p / S, of which S is a constant; value of those not chosen 0."""
    moe, R, virtual = block.moe, len(block.experts), block.router.virtual_experts
    routing = block.router.route(x_TD, modality, moe.num_experts_per_tok, moe.gate)
    probs_TN = routing.probs_TE
    N = probs_TN.shape[1]
    value_TN = torch.zeros(len(x_TD), N + 1).scatter_add(1, routing.index_TK.clamp(max=N), routing.weight_TK.detach())[:, :N]
    chosen_TN = torch.zeros(len(x_TD), N + 1).scatter(1, routing.index_TK.clamp(max=N), 1.0)[:, :N].bool()
    sums_TN = (probs_TN * chosen_TN).sum(-1, keepdim=True).expand(-1, N).clone()
    if getattr(block.router.options, "over", "") == "real":
        sums_TN[:, :R] = (probs_TN * chosen_TN)[:, :R].sum(-1, keepdim=True)
    divisor_TN = torch.ones_like(sums_TN) if moe.gate == "probability" else sums_TN.detach()
    weight_TN = probs_TN / divisor_TN * getattr(block.router.options, "output_scale", 1.0)
    scaled_TD = x_TD if routing.input_scale_T1 is None else x_TD * routing.input_scale_T1

    def outputs(inputs_TD: Tensor) -> Tensor:
        real = [expert(inputs_TD) for expert in block.experts]
        return torch.stack([*real, *(virtual.outputs(inputs_TD) if virtual else [])], 1)

    with torch.no_grad():
        of_others_TND = outputs(scaled_TD)
    of_chosen_TND = outputs(scaled_TD)
    gradient_alone_TN = weight_TN - weight_TN.detach()
    chosen_TD = ((value_TN + gradient_alone_TN).unsqueeze(-1) * of_chosen_TND * chosen_TN.unsqueeze(-1)).sum(1)
    return chosen_TD + (gradient_alone_TN.unsqueeze(-1) * of_others_TND * ~chosen_TN.unsqueeze(-1)).sum(1)


def gradients(block: EvoMoEBlock, forward, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    block.to(dtype).zero_grad()  # routers compute in float32 all the same
    x_TD, modality = tokens()
    x_TD = x_TD.to(dtype).requires_grad_()
    wanted_TD = torch.randn(T, D, generator=torch.Generator().manual_seed(1))
    (forward(block, x_TD, modality) * wanted_TD).sum().backward()
    found = {name: p.grad for name, p in block.named_parameters() if p.grad is not None}
    assert x_TD.grad is not None
    return found | {"x": x_TD.grad}


ROUTERS = {
    "linear": {},
    "modality": {},
    "modality+shared": {},
    "dtr": {"hypernet_width": 4, "rank": 2},
    "zero_computation": {},
    "top_p": {"p": 0.6},
    "anyexperts": {"k_min": 1, "k_max": 3, "num_virtual": 2, "cap_scope": "expectation"},
}


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("K", [1, 2])
@pytest.mark.parametrize("router", ROUTERS)
def test_the_gradient_is_that_of_the_formula(router, K, gate):
    if gate == "normalised" and router in ("top_p", "anyexperts"):
        pytest.skip("refused: see the routers' checks")
    fields = {"router_options": ROUTERS[router], "gate": gate, "num_experts_per_tok": K, "router_gradient": "all"}
    block = make_block(router, **fields)
    found, expected = gradients(block, run), gradients(block, written_out)
    assert set(found) == set(expected) and any(found[name].any() for name in found if name.startswith("router"))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4 * gradient.abs().max().item() + 1e-9, msg=name)


@pytest.mark.parametrize("kind", ["zero", "identity", "constant"])
@pytest.mark.parametrize("over", ["real", "all"])
def test_virtual_experts_count_with_what_they_give(kind, over):
    options = {
        "k_min": 2,
        "k_max": 3,
        "num_virtual": 3,
        "virtual": kind,
        "over": over,
        "cap_scope": "expectation",
        "output_scale": 1.5,
    }
    block = make_block("anyexperts", router_options=options, num_experts_per_tok=2)
    chosen_TK = block.router.route(*tokens(), 2, block.moe.gate).index_TK
    assert ((chosen_TK >= E) & (chosen_TK < E + 3)).any() and (chosen_TK == E + 3).any()
    found, expected = gradients(block, run), gradients(block, written_out)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4 * gradient.abs().max().item() + 1e-9, msg=name)


@pytest.mark.parametrize("router", ROUTERS)
def test_no_value_changes_by_a_bit(router):
    values = []
    for choice in ("chosen", "all"):
        block = make_block(router, router_options=ROUTERS[router], router_gradient=choice)
        values.append((run(block, *tokens()), run(block.eval(), *tokens())))
    assert all(torch.equal(chosen, everyone) for chosen, everyone in zip(*values, strict=True))


def test_nothing_is_kept_or_run_at_inference():
    block = make_block(router_gradient="all").eval()
    calls = []
    block.experts[0].register_forward_hook(lambda *_: calls.append(1))
    out_TD = run(block, *tokens())
    assert "GradientOfOthers" not in type(out_TD.grad_fn.next_functions[0][0]).__name__
    ran = len(calls)
    out_TD.sum().backward()
    assert len(calls) == ran == 1


@pytest.mark.parametrize(
    ("frozen", "choice", "learns"), [(True, "auto", 1), (False, "auto", 0), (True, "chosen", 0), (False, "all", 1)]
)
def test_all_experts_are_asked_while_they_are_frozen(frozen, choice, learns):
    found = gradients(make_block(frozen=frozen, router_gradient=choice), run)
    of_all = gradients(make_block(frozen=frozen, router_gradient="all"), run)
    assert torch.equal(found["router.gate.weight"], of_all["router.gate.weight"]) == bool(learns)


def test_experts_that_train_learn_from_their_own_tokens_alone():
    found, of_chosen = (gradients(make_block(frozen=False, router_gradient=choice), run) for choice in ("all", "chosen"))
    experts = [name for name in found if name.startswith("experts")]
    assert experts and all(torch.equal(found[name], of_chosen[name]) for name in experts)


def test_autocast_holds_in_the_backward_pass_too():
    block, kinds = make_block(router_gradient="all"), []
    expected = gradients(block, run)["router.gate.weight"]
    block.float()
    for expert in block.experts:
        expert.up_proj.register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    x_TD, modality = tokens()
    with torch.autocast("cpu", torch.bfloat16):
        y_TD = run(block, x_TD, modality)
    block.zero_grad()
    (y_TD * torch.randn(T, D, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert len(kinds) == 2 * E and set(kinds) == {torch.bfloat16}
    torch.testing.assert_close(block.router.gate.weight.grad, expected.float(), rtol=0.1, atol=0.02 * expected.abs().max().item())


@pytest.mark.parametrize("implementation", ["loop", pytest.param("grouped_mm", marks=needs_grouped_mm)])
def test_either_way_to_run_the_experts_serves(implementation):
    block = make_block(num_experts_per_tok=2).float()
    expected = gradients(block, written_out)["router.gate.weight"]
    block.experts.implementation = implementation
    x_TD, modality = tokens()
    block.float().zero_grad()
    (run(block, x_TD, modality) * torch.randn(T, D, generator=torch.Generator().manual_seed(1))).sum().backward()
    torch.testing.assert_close(block.router.gate.weight.grad, expected.float(), rtol=1e-3, atol=1e-5)


def test_a_model_that_was_sparse_before_learns_from_its_own_experts():
    config = MixtralConfig(
        hidden_size=D, intermediate_size=F, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, vocab_size=50,
        num_local_experts=E, num_experts_per_tok=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = attach(MixtralForCausalLM(config), num_virtual=0, alpha_f=0.0, lam=0.0).requires_grad_(False).train()
    block = next(iter(model.moe_blocks.values()))
    block.router.gate.requires_grad_(True)
    found, expected = (gradients(block, forward, torch.float32)["router.gate.weight"] for forward in (run, written_out))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_draw_of_experts_has_the_mean_of_all():
    block = make_block(num_experts=6, num_experts_per_tok=2, gradient_experts=0)
    of_all = gradients(block, run)["router.gate.weight"]
    asked, few = [], make_block(num_experts=6, num_experts_per_tok=2, gradient_experts=1)
    for expert in few.experts:
        expert.register_forward_hook(lambda module, inputs, output: asked.append(len(output)))
    draws = torch.stack([gradients(few, run)["router.gate.weight"] for _ in range(600)])
    assert sum(asked) == 600 * T * 3  # two that were chosen, one that was not
    error = draws.std(0) / 600**0.5
    assert ((draws.mean(0) - of_all).abs() < 4.5 * error + 1e-6).all() and draws.std(0).mean() > 0


def test_a_layer_may_add_to_the_output_in_place():
    y_TD = run(make_block(), *tokens())
    y_TD += 1
    y_TD.sum().backward()


def test_a_hidden_expert_that_has_all_the_probability_leaves_no_nan():
    options = {"k_min": 1, "k_max": 2, "num_virtual": 1, "virtual": "identity"}
    block = make_block("anyexperts", router_options=options)
    with torch.no_grad():
        block.router.gate.weight[E] = 100.0
    x_TD, modality = tokens()
    run(block, x_TD.abs(), modality).sum().backward()
    assert all(p.grad.isfinite().all() for p in block.router.parameters() if p.grad is not None)


class Scaled(LinearRouter):
    """Overrides a step of routing with something that trains."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.scale = nn.Parameter(torch.ones(()))

    def weigh(self, index_TK: Tensor, chosen_TK: Tensor, gate: str) -> Tensor:
        return super().weigh(index_TK, chosen_TK, gate) * self.scale


class Alone(LinearRouter):
    """Has a ``route`` of its own, which knows nothing of experts that were not chosen."""

    def route(self, *args, **options) -> Routing:
        return replace(super().route(*args, **options), weight_TE=None)


def test_a_router_whose_weights_train_trains_them(monkeypatch):
    monkeypatch.setitem(ROUTERS_TABLE, "scaled", Scaled)
    assert gradients(make_block("scaled"), run)["router.scale"].abs() > 0


def test_a_router_that_cannot_learn_from_others_says_so_if_it_is_asked_to(monkeypatch):
    monkeypatch.setitem(ROUTERS_TABLE, "alone", Alone)
    auto, chosen = (gradients(make_block("alone", router_gradient=choice), run) for choice in ("auto", "chosen"))
    assert all(torch.equal(auto[name], chosen[name]) for name in chosen)
    with pytest.raises(OptionError, match="^router_gradient: this router has a `route` of its own"):
        run(make_block("alone", router_gradient="all"), *tokens())


def test_records_can_be_sent_to_another_process():
    block, (x_TD, modality) = make_block(), tokens()
    with running(ForwardPass(modality, recording=True)) as forward_pass:
        block(x_TD[None])
    torch.save(forward_pass.records, io.BytesIO())


def test_a_draw_leaves_the_random_numbers_of_the_forward_pass_alone():
    block = make_block(num_experts=6, gradient_experts=1)
    torch.manual_seed(3)
    run(block, *tokens())
    after = torch.rand(())
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(()))


def test_the_gradient_of_all_finds_the_expert_of_each_modality():
    """Two frozen experts, 15 % apart: one gives the target for image tokens, the other for text tokens."""
    shares = {choice: [share_at_the_right_expert(choice, seed) for seed in range(5)] for choice in ("chosen", "all")}
    assert min(shares["all"]) > 0.99, shares
    assert sum(shares["chosen"]) / 5 < 0.9, shares


def share_at_the_right_expert(choice: str, seed: int, steps: int = 50) -> float:
    torch.manual_seed(seed)
    first = LlamaMLP(LlamaConfig(hidden_size=D, intermediate_size=F, num_attention_heads=2)).requires_grad_(False)
    second = deepcopy(first)
    for weight in second.parameters():
        weight += 0.15 * weight.std() * torch.randn_like(weight)
    moe = MoEConfig(
        base_model_type="llama", moe_layers=[0], num_experts=2, router="modality", router_gradient=choice, aux_losses={}
    )
    block = EvoMoEBlock(0, moe, D, Experts([first, second])).train()
    optimizer = torch.optim.Adam(block.router.parameters(), lr=1e-2)
    for step in range(steps):
        x_TD, modality = tokens(256, mean=1.0, seed=seed * 1000 + step)
        wanted_TD = torch.where(modality.is_image_T.unsqueeze(-1), second(x_TD), first(x_TD))
        optimizer.zero_grad()
        (run(block, x_TD, modality) - wanted_TD).square().sum(-1).mean().backward()
        optimizer.step()
    x_TD, modality = tokens(1000, mean=1.0, seed=99)
    index_T = block.router.route(x_TD, modality, 1, moe.gate).index_TK[:, 0]
    return (index_T == modality.is_image_T.long()).float().mean().item()
