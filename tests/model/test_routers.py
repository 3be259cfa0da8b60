"""Every row of the router table, and the maths of the dynamic token-aware router against its naive form."""

from dataclasses import replace

import pytest
import torch
from tiny.router_options import ROUTER_OPTIONS
from torch.nn import functional as F

from evomoe.model.modality import Modality
from evomoe.model.routers import ROUTERS
from evomoe.model.routers.checked_logits import try_router
from evomoe.model.routers.dtr import DynamicTokenAwareRouter
from evomoe.model.routers.fixed import FixedRouter
from evomoe.model.routers.shuffled import ShuffledRouter
from evomoe.model.routing import GATES
from evomoe.support.errors import OptionError

D, E = 24, 4


def some_tokens(T: int = 12, seed: int = 0) -> tuple[torch.Tensor, Modality]:
    generator = torch.Generator().manual_seed(seed)
    is_image_T = torch.arange(T) % 3 == 0
    return torch.randn(T, D, generator=generator), Modality.of(is_image_T[None], None)


@pytest.fixture(params=ROUTERS)
def router(request):
    torch.manual_seed(0)
    return ROUTERS[request.param](D, E).eval()


def test_logits_are_float32_and_finite_whatever_the_precision(router):
    x_TD, modality = some_tokens()
    for dtype in (torch.float32, torch.bfloat16):
        routing = router.to(dtype).route(x_TD.to(dtype), modality, 2, "straight_through")
        every = E + len(router.virtual_experts or ())
        assert routing.logits_TE.shape == routing.probs_TE.shape == (12, every) and len(routing.index_TK) == 12
        assert routing.index_TK.shape == routing.weight_TK.shape and (routing.index_TK[:, 0] < every).all()
        for tensor in (routing.logits_TE, routing.probs_TE, routing.weight_TK):
            assert tensor.dtype == torch.float32 and tensor.isfinite().all()


def test_autocast_does_not_lower_the_precision(router):
    x_TD, modality = some_tokens()
    plain = router.route(x_TD, modality, 1, "probability").logits_TE
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(router.route(x_TD, modality, 1, "probability").logits_TE, plain)


def test_a_token_is_routed_alike_alone_and_in_company(router):
    x_TD, modality = some_tokens()
    together = router(x_TD, modality)
    for t in range(12):
        alone = router(x_TD[t : t + 1], Modality.of(modality.is_image_T[None, t : t + 1], None))
        torch.testing.assert_close(alone[0], together[t], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ROUTERS)
def test_a_router_draws_all_of_its_weights(name):
    """Nothing is drawn twice, so what a router forgets to draw would be what the memory held before."""
    torch.use_deterministic_algorithms(True)  # then torch fills new memory with NaN
    try:
        router = ROUTERS[name](D, E)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(weight.isfinite().all() for weight in router.parameters())


@pytest.mark.parametrize("name", [name for name in ROUTERS if name != "fixed"])  # which has no parameters
def test_every_parameter_of_a_router_gets_a_gradient(name):
    x_TD, modality = some_tokens()
    router = ROUTERS[name](D, E).train()
    parameters = {name: p for name, p in router.named_parameters() if not name.startswith("virtual")}  # no part of the logits
    if name == "anyexperts":
        torch.nn.init.ones_(router.importance.outer.weight)  # at zero nothing before it has a gradient yet
    router(x_TD, modality)[:, 0].square().sum().backward()
    for name, parameter in parameters.items():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_one_modality_alone_leaves_the_other_s_parameters_a_zero_gradient():
    router = DynamicTokenAwareRouter(D, E).train()
    x_TD, _ = some_tokens()
    router(x_TD, Modality.of(torch.zeros(1, 12, dtype=torch.bool), None)).sum().backward()
    # Zero rather than none: DDP waits for every parameter on every process.
    assert all(p.grad is not None and not p.grad.any() for p in router.image.parameters())
    assert all(p.grad.any() for p in router.text.parameters())


@pytest.mark.parametrize("name", ["modality", "dtr"])
def test_modalities_have_routers_of_their_own(name):
    router = ROUTERS[name](D, E)
    x_TD, modality = some_tokens()
    before = router(x_TD, modality)
    with torch.no_grad():
        for parameter in router.image.parameters():
            parameter.mul_(2)
    changed_T = (router(x_TD, modality) != before).any(-1)
    assert torch.equal(changed_T, modality.is_image_T)


def naive_dtr(router: DynamicTokenAwareRouter, x_TD: torch.Tensor, modality: Modality) -> torch.Tensor:
    """Eq. 5-8 as printed, on z divided by its root mean square: both matrices of every token written out."""
    R, rows = router.image.rank, []
    x_TD = x_TD / (x_TD.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    for z_D, image in zip(x_TD, modality.is_image_T, strict=True):
        net = router.image if image else router.text
        a_H = net.embed.weight @ z_D + net.embed.bias
        W2_down_HPD = net.down.weight.view(net.width + 1, 2 * R, -1)
        W2_up_DHR = net.up.weight.view(-1, net.width + 1, R)
        down_PD = torch.einsum("h,hpd->pd", a_H, W2_down_HPD[:-1]) + W2_down_HPD[-1]
        up_DR = torch.einsum("h,dhr->dr", a_H, W2_up_DHR[:, :-1]) + W2_up_DHR[:, -1]
        gate_R, value_R = (down_PD @ z_D).chunk(2)
        rows.append(router.phi.weight @ (up_DR @ (F.silu(gate_R) * value_R)) + router.phi.bias)
    return torch.stack(rows)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize(("width", "rank"), [(5, 3), (1, 1), (8, 2)])
def test_the_factored_form_equals_the_naive_one_in_float64_with_its_gradients(monkeypatch, width, rank, alone):
    # Float32 arithmetic is the router's promise; for the comparison it keeps float64.
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)
    router = DynamicTokenAwareRouter(D, E, hypernet_width=width, rank=rank).double()
    with torch.no_grad():
        for net in (router.image, router.text):
            net.embed.bias.normal_()
        router.phi.bias.normal_()
    x_TD, modality = some_tokens()
    if alone:  # a step of decoding, which forms the matrix
        x_TD, modality = x_TD[:1], Modality.of(modality.is_image_T[None, :1], None)
        router.eval()
    x_TD = x_TD.double().requires_grad_()
    results = []
    for forward in (router, lambda x, m: naive_dtr(router, x, m)):
        logits_TE = forward(x_TD, modality)
        parameters = [x_TD, *router.parameters()]
        results.append([logits_TE, *torch.autograd.grad(logits_TE.sin().sum(), parameters, materialize_grads=True)])
    for factored, naive in zip(*results, strict=True):
        torch.testing.assert_close(factored, naive, atol=1e-10, rtol=1e-9)


def test_dtr_does_not_care_about_the_scale_of_its_input():
    router = DynamicTokenAwareRouter(D, E)
    x_TD, modality = some_tokens()
    torch.testing.assert_close(router(100 * x_TD, modality), router(x_TD, modality), atol=1e-4, rtol=1e-4)
    assert 0.05 < router(x_TD, modality).std() < 2


def test_dtr_has_the_parameters_that_the_paper_s_totals_need():
    router = DynamicTokenAwareRouter(D, E, hypernet_width=64, rank=16)
    hypernetwork = D * 64 + 64 + 3 * 16 * D * (64 + 1)
    assert sum(p.numel() for p in router.parameters()) == 2 * hypernetwork + D * E + E


def test_dtr_bounds_its_logits_if_asked_to():
    x_TD, modality = some_tokens()
    torch.manual_seed(0)
    free = DynamicTokenAwareRouter(D, E)
    torch.manual_seed(0)
    capped = DynamicTokenAwareRouter(D, E, cap=0.5)
    logits_TE = free(x_TD, modality)
    assert logits_TE.abs().max() > 0.6
    torch.testing.assert_close(capped(x_TD, modality), 0.5 * (logits_TE / 0.5).tanh())


@pytest.mark.parametrize("options", [{"hypernet_width": 0}, {"rank": 0}, {"cap": -1.0}])
def test_dtr_refuses_empty_sizes(options):
    with pytest.raises(ValueError, match="at least (1|0.001)"):
        DynamicTokenAwareRouter(D, E, **options)


def test_fixed_sends_all_to_one_expert_with_weight_one():
    x_TD, modality = some_tokens()
    routing = FixedRouter(D, E, expert=2).route(x_TD, modality, 1, "probability")
    assert (routing.index_TK == 2).all() and (routing.weight_TK == 1).all()
    halved = replace(routing, weight_TK=routing.weight_TK / 2)  # as a router that wraps another one may do
    assert (halved.weight_TK == 0.5).all() and torch.equal(halved.probs_TE, F.one_hot(torch.full((12,), 2), E).float())
    with pytest.raises(ValueError, match="expert 4 does not exist"):
        FixedRouter(D, E, expert=4)


def test_shuffled_permutes_in_evaluation_only_and_is_never_the_identity():
    x_TD, modality = some_tokens()
    for seed in range(20):
        router = ShuffledRouter(D, E, "linear", seed=seed)
        assert sorted(router.permutation) == list(range(E)) and router.permutation != list(range(E))
        inner = router.inner(x_TD, modality)
        assert torch.equal(router.train()(x_TD, modality), inner)
        assert torch.equal(router.eval()(x_TD, modality), inner[:, router.permutation])
    assert ShuffledRouter(D, E, "linear", seed=3).permutation == ShuffledRouter(D, E, "linear", seed=3).permutation


def test_shared_starts_halfway_between_own_and_shared_router():
    router = ROUTERS["modality+shared"](D, E)
    x_TD, modality = some_tokens()
    expected = (router.own(x_TD, modality) + router.shared(x_TD, modality)) / 2
    torch.testing.assert_close(router(x_TD, modality), expected)


def test_gates_by_hand():
    chosen_TK = torch.tensor([[0.5, 0.25]])
    assert GATES["probability"](chosen_TK, chosen_TK).tolist() == [[0.5, 0.25]]
    torch.testing.assert_close(GATES["normalised"](chosen_TK, chosen_TK), torch.tensor([[2 / 3, 1 / 3]]))
    chosen_TK.requires_grad_()
    weight_TK = GATES["straight_through"](chosen_TK, chosen_TK)
    torch.testing.assert_close(weight_TK.detach(), torch.tensor([[2 / 3, 1 / 3]]))
    weight_TK[0, 0].backward()
    torch.testing.assert_close(chosen_TK.grad, torch.tensor([[1 / 0.75, 0.0]]))


def test_expert_dropout_hides_experts_in_training_only_and_leaves_enough():
    router = ROUTERS["linear"](D, E)
    torch.nn.init.zeros_(router.gate.weight)
    x_TD, modality = some_tokens(3000)
    router.train()
    hidden_TE = router.route(x_TD, modality, 1, "probability", dropout=0.3).probs_TE == 0
    # Each expert is hidden from 30 % of the tokens, save those from which all four are hidden, which keep all.
    assert hidden_TE.float().mean(0).tolist() == pytest.approx([0.3 - 0.3**4] * E, abs=0.03)
    routing = router.route(x_TD, modality, 3, "straight_through", dropout=0.9)
    assert all(len(set(row)) == 3 for row in routing.index_TK.tolist())
    assert routing.probs_TE.isfinite().all() and routing.weight_TK.isfinite().all()
    kept_T = E - ROUTERS["linear"](D, E).train().route(x_TD, modality, 3, "probability", 0.9).probs_TE.eq(0).sum(-1)
    assert kept_T.min() >= 3
    router.eval()
    assert not (router.route(x_TD, modality, 1, "probability", dropout=0.3).probs_TE == 0).any()


def test_top_p_by_hand():
    router = ROUTERS["top_p"](4, 4, p=0.6, most=3)
    router.gate.weight.data = torch.eye(4)
    x_TD = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]]).log()
    routing = router.route(x_TD, Modality.of(torch.zeros(1, 3, dtype=torch.bool), None), 2, "straight_through")
    assert routing.index_TK.tolist()[:2] == [[0, 4, 4], [0, 1, 4]] and (routing.index_TK[2] < 4).sum() == 3
    torch.testing.assert_close(routing.weight_TK[:2], torch.tensor([[1, 0, 0], [4 / 7, 3 / 7, 0]]))
    for options, message in (({"p": 0.0}, "p: 0 must lie"), ({"most": 5}, r"most: 5 must lie between 1 and num_experts \(4\)")):
        with pytest.raises(ValueError, match=message):
            ROUTERS["top_p"](4, 4, **options)
    with pytest.raises(
        ValueError, match="^gate: with router 'top_p' .* a token that needs one expert .* choose `gate=probability`"
    ):
        router.check(2, "normalised")


def test_zero_computation_chooses_among_real_and_virtual_experts_alike():
    router = ROUTERS["zero_computation"](6, 3, zero=1, identity=1, constant=1)
    assert router.virtual.kinds == ("zero", "identity", "constant")
    router.gate.weight.data = torch.eye(6)
    x_TD = torch.tensor([[5.0, 1.0, 2.0, 4.0, 0.0, 0.0], [0.0, 1.0, 2.0, 0.0, 9.0, 3.0]])
    routing = router.route(x_TD, Modality.of(torch.zeros(1, 2, dtype=torch.bool), None), 2, "probability")
    assert routing.index_TK.tolist() == [[0, 3], [4, 5]]
    with pytest.raises(ValueError, match="must not be negative"):
        ROUTERS["zero_computation"](6, 3, zero=-1)


@pytest.mark.parametrize("inner", ["linear", "anyexperts", "zero_computation"])
def test_shuffled_sends_each_real_expert_s_tokens_to_another_one(inner):
    torch.manual_seed(0)
    shuffled = ShuffledRouter(D, E, inner, seed=3).eval()
    x_TD, modality = some_tokens(40)
    own, moved = (
        shuffled.inner.route(x_TD, modality, 2, "straight_through"),
        shuffled.route(x_TD, modality, 2, "straight_through"),
    )
    goes_to = {expert: place for place, expert in enumerate(shuffled.permutation)}
    expected = [[goes_to.get(expert, expert) for expert in chosen] for chosen in own.index_TK.tolist()]
    assert moved.index_TK.tolist() == expected != own.index_TK.tolist()
    assert torch.equal(moved.weight_TK, own.weight_TK) and torch.equal(moved.logits_TE, shuffled(x_TD, modality))
    torch.testing.assert_close(moved.probs_TE, moved.logits_TE.softmax(-1))
    assert shuffled.virtual_experts is shuffled.inner.virtual_experts


@pytest.mark.parametrize("gate", [name for name in GATES if name != "probability"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_a_gate_says_the_same_with_and_without_gradients(gate, top_k):
    chosen_TK = torch.rand(50, 4).softmax(-1).topk(top_k).values
    chosen_TK[0, -1] = 0  # a slot without an expert
    chosen_TK[1, 0] = float("nan")  # a fault that must stay to be seen
    counted_TK = chosen_TK * (torch.rand_like(chosen_TK) < 0.5)
    for counted in (chosen_TK, counted_TK):
        with_gradients = GATES[gate](chosen_TK, counted)
        with torch.no_grad():
            torch.testing.assert_close(GATES[gate](chosen_TK, counted), with_gradients, atol=0, rtol=0, equal_nan=True)


WRONG = {
    "too many experts": lambda logits_TE: torch.cat([logits_TE, logits_TE], -1),
    "an expert short": lambda logits_TE: logits_TE[:, 1:],
    "a token short": lambda logits_TE: logits_TE[1:],
    "one number a token": lambda logits_TE: logits_TE[:, 0],
    "turned": lambda logits_TE: logits_TE.T,
    "bfloat16": lambda logits_TE: logits_TE.bfloat16(),
}


@pytest.mark.parametrize("fault", WRONG)
def test_logits_of_a_wrong_shape_or_precision_are_refused(fault):
    class Wrong(ROUTERS["linear"]):
        def forward(self, x_TD, modality):
            return WRONG[fault](super().forward(x_TD, modality))

    with pytest.raises(ValueError, match=r"Wrong gave logits .*; \(7, 4\) float32 is expected"):
        Wrong(16, 4).route(torch.randn(7, 16), Modality.of(torch.zeros(1, 7, dtype=torch.bool), None), 1, "straight_through")


@pytest.mark.parametrize("router", ROUTERS)
def test_a_trial_passes_every_router(router):
    options = ROUTER_OPTIONS.get(router, {}).get("router_options", {})
    try_router(ROUTERS[router](16, 8, **options), 1 if router in ("linear", "fixed") else 2, "straight_through")


def test_a_trial_finds_what_a_router_does_wrong():
    class OnlyMixed(ROUTERS["linear"]):
        def forward(self, x_TD, modality):
            return super().forward(x_TD, modality) + 0 * x_TD[modality.tokens[0][0]].sum()

    class NotFinite(ROUTERS["linear"]):
        def weigh(self, index_TK, chosen_TK, gate):
            return chosen_TK * float("nan")

    with pytest.raises(OptionError, match="tried on 2 random tokens and raised IndexError"):
        try_router(OnlyMixed(16, 4), 1, "straight_through")

    class OnlyTraining(ROUTERS["linear"]):
        def forward(self, x_TD, modality):
            return super().forward(x_TD, modality) if self.training else None

    with pytest.raises(OptionError, match="tried on 5 random tokens and raised ValueError: OnlyTraining gave logits that are a"):
        try_router(OnlyTraining(16, 4), 1, "straight_through")
    with pytest.raises(OptionError, match="not finite"):
        try_router(NotFinite(16, 4), 1, "straight_through")
