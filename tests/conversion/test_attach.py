"""AnyExperts on models that transformers has as mixtures of experts."""

import pytest
import torch
from tiny import families, inputs_for, make, make_llava
from torch import nn
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

from evomoe.analysis.calibration import calibrate, real_experts_per_token
from evomoe.analysis.recording import record_routing
from evomoe.conversion.attaching import attach
from evomoe.conversion.upcycling import upcycle
from evomoe.model.accounting import count_parameters
from evomoe.model.budget import set_budget, set_experts_per_token
from evomoe.model.loading import load_model
from evomoe.model.modality import Modality
from evomoe.model.stacked_experts import StackedExperts
from evomoe.model.structure import UnsupportedModelError
from evomoe.training.trainable import set_trainable

SPARSE = sorted(families.SPARSE)
NEUTRAL = {"num_virtual": 0, "alpha_f": 0.0, "lam": 0.0}


def batch(family: str, padding: str = "right") -> dict[str, torch.Tensor]:
    """With pictures where the family sees."""
    return inputs_for(family, images=(1, 2, 0) if "vl" in family else (0, 0, 0), padding=padding)


def neutral(family: str):
    model = make(family)
    top_k = model.config.get_text_config().num_experts_per_tok
    return attach(model, k_min=top_k, k_max=top_k, **NEUTRAL)


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("family", SPARSE)
def test_with_neutral_options_the_model_computes_what_it_did(family, padding):
    model, inputs = make(family), batch(family, padding)
    is_real = inputs["attention_mask"].bool()
    with torch.no_grad():
        before = model(**inputs).logits[is_real]
        after = neutral(family)(**inputs).logits[is_real]
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", SPARSE)
def test_a_saved_model_loads_as_it_was(family, tmp_path):
    model, inputs = attach(make(family), seed=1), batch(family)
    with torch.no_grad():
        logits = model(**inputs).logits
        model.save_pretrained(tmp_path)
        again = load_model(tmp_path, "float32").eval()
        assert type(again) is type(model) and type(again).__name__.startswith("EvoMoE")
        torch.testing.assert_close(again(**inputs).logits, logits, atol=1e-5, rtol=1e-4)
        assert (make(family)(**inputs).logits - logits).abs().max() > 1e-3  # other options, other answers


@pytest.mark.parametrize("family", ["qwen2-moe", "deepseek-v3", "qwen3-vl-moe"])
def test_experts_and_scores_are_the_model_s_own(family):
    dense = make(family)
    weights = {name: weight for name, weight in dense.named_parameters() if ".experts." in name}
    gates = [weight.detach().clone() for name, weight in dense.named_parameters() if name.endswith(".gate.weight")]
    model = attach(dense)
    assert model is dense and model.config.moe.moe_layers == [*model.moe_blocks]
    now = {id(parameter) for parameter in model.parameters()}
    assert all(id(weight) in now for weight in weights.values())
    for block, gate in zip(model.moe_blocks.values(), gates, strict=True):
        R = len(gate)
        assert torch.equal(block.router.gate.weight[:R], gate) and len(block.experts) == R
        virtual = block.router.gate.weight[R:]
        assert len(virtual) == round(R / 4)
        torch.testing.assert_close(virtual, gate.mean(0).expand_as(virtual), atol=0.05 * gate.std().item(), rtol=0)


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_virtual_slots_run_no_expert_whichever_implementation_runs(implementation, monkeypatch):
    model = attach(make("qwen3-moe"), k_min=2, k_max=8, rho=0.5)
    for block in model.moe_blocks.values():
        nn.init.normal_(block.router.importance.outer.weight, std=3.0)
    inputs, rows = batch("qwen3-moe"), []
    expected = model(**inputs).logits
    model.set_experts_implementation(implementation)
    for block in model.moe_blocks.values():
        block.experts.stacked.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[0]))
    with record_routing(model) as recording, torch.no_grad():
        logits = model(**inputs).logits
    R = model.config.moe.num_experts
    real = [int(counts_ME[:, :R].sum()) for counts_ME in recording.counts.values()]
    virtual = [int(counts_ME[:, R:].sum()) for counts_ME in recording.counts.values()]
    assert rows == real and sum(virtual) > 0
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


def test_padding_and_the_rest_of_the_batch_change_no_token():
    model, inputs = attach(make("qwen2-moe"), k_min=2, k_max=6), batch("qwen2-moe", "left")
    for block in model.moe_blocks.values():
        nn.init.normal_(block.router.importance.outer.weight, std=3.0)
    with torch.no_grad():
        together = model(**inputs).logits
        for row in range(3):
            real = inputs["attention_mask"][row].bool()
            alone = model(input_ids=inputs["input_ids"][row, real][None]).logits[0]
            torch.testing.assert_close(together[row, real], alone, atol=1e-5, rtol=1e-4)


def test_cached_generation_equals_the_whole_forward_pass():
    model, inputs = attach(make("deepseek-v3"), k_min=2, k_max=6), batch("deepseek-v3", "left")
    answer = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, 5, dtype=torch.long)], -1)
    with torch.no_grad():
        best = model(input_ids=answer, attention_mask=mask).logits.argmax(-1)
    assert torch.equal(best[:, -6:-1], answer[:, -5:])


def test_the_budget_moves_and_is_kept(tmp_path):
    model, inputs = attach(make("olmoe"), rho=0.25), batch("olmoe")
    means = []
    for real in (2.0, 4.0, 6.0):
        set_budget(model, real)
        means.append(real_experts_per_token(model, lambda m: m(**inputs)))
    assert means == sorted(means) and means[0] < means[-1]
    mean = calibrate(model, 3.0, lambda m: m(**inputs))
    assert abs(mean - 3.0) < 0.5
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path, "float32").eval()
    assert real_experts_per_token(again, lambda m: m(**inputs)) == pytest.approx(mean, abs=1e-6)


def test_only_the_routers_train_and_learn_from_the_loss():
    model, inputs = attach(make("qwen3-vl-moe"), gate="straight_through"), batch("qwen3-vl-moe")
    names = set_trainable(model, "router", [])
    assert names and all(".experts.router." in name for name in names)
    model.train()
    out = model(**inputs, labels=inputs["input_ids"])
    out.loss.backward()
    assert set(out.aux_loss) == {"balance", "importance"}
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(grads[name] is not None for name in names)
    assert all(grads[name].abs().sum() > 0 for name in names if name.endswith("router.gate.weight"))


def test_parameters_are_counted_expert_by_expert():
    model = attach(make("mixtral"))
    counts, one = count_parameters(model), 3 * 32 * 48  # gate, up and down of one expert
    assert counts.total - counts.activated == 4 * (8 - 2) * one
    assert count_parameters(model, part="vision").activated == 0


def test_each_expert_alone_is_what_it_adds():
    experts = StackedExperts(make("qwen3-moe").model.layers[0].mlp.experts)
    x_TD = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    index_TK, weight_TK = torch.tensor([[3, 0], [16, 2], [5, 16], [16, 16], [1, 15]]), torch.rand(5, 2)
    with torch.no_grad():
        found = experts(x_TD, index_TK, weight_TK)
        for t in range(5):
            parts = [weight_TK[t, k] * experts[int(e)](x_TD[t : t + 1])[0] for k, e in enumerate(index_TK[t]) if e < 16]
            torch.testing.assert_close(found[t], sum(parts, torch.zeros(32)), atol=1e-6, rtol=1e-5)
    assert [weight.shape for weight in experts.weights(2).values()] == [(32, 32), (32, 16)] and len([*experts]) == 16


def test_the_model_s_own_balance_loss_is_off(monkeypatch):
    model = make("mixtral")
    model.config.output_router_logits = True
    attach(model)
    inputs = batch("mixtral")
    out = model(**inputs, labels=inputs["input_ids"])
    assert model.config.output_router_logits is False and torch.isfinite(out.loss)


class Odd(nn.Module):
    """A router that no reading fits."""

    def __init__(self, router: nn.Module) -> None:
        super().__init__()
        self.weight = router.weight

    def forward(self, x_TD):
        logits_TE = x_TD @ self.weight.T
        best_TK, index_TK = logits_TE.topk(4, dim=-1)
        return logits_TE, best_TK.tanh(), index_TK


def test_what_cannot_be_imitated_is_refused_and_left_alone():
    with pytest.raises(UnsupportedModelError, match="no sparse layers to attach AnyExperts to; `evomoe upcycle` converts"):
        attach(make_llava())
    with pytest.raises(UnsupportedModelError, match="has this library's routers already"):
        attach(attach(make("olmoe")))
    model = make("olmoe")
    model.model.layers[2].mlp.gate = Odd(model.model.layers[2].mlp.gate)
    with pytest.raises(UnsupportedModelError, match="OlmoeForCausalLM, layer 2: Odd scores in a way"):
        attach(model)
    model = make("olmoe")
    model.model.layers[2].mlp.gate.norm_topk_prob = True
    with pytest.raises(UnsupportedModelError, match="routers differ from each other"):
        attach(model)
    for options, message in (
        ({"k_min": 4}, "give both"),
        ({"rhoo": 1}, "takes no 'rhoo'"),
        ({"k_min": 4, "k_max": 99}, "only 16 real"),
    ):
        model, inputs = make("olmoe"), batch("olmoe")
        before = model(**inputs).logits
        with pytest.raises(ValueError, match=message):
            attach(model, **options)
        assert torch.equal(model(**inputs).logits, before) and type(model).__name__ == "OlmoeForCausalLM"
    with pytest.raises(ValueError, match="come from 2 of 4 groups, which have 8"):
        attach(make("deepseek-v3"), k_min=4, k_max=10)


class OtherInput(OlmoeSparseMoeBlock):
    """Gives its experts something else than its router."""

    def forward(self, hidden_BSD):
        hidden_TD = hidden_BSD.flatten(0, 1)
        _, weight_TK, index_TK = self.gate(hidden_TD)
        return self.experts(2 * hidden_TD, index_TK, weight_TK).view_as(hidden_BSD)


class OtherWeights(OlmoeSparseMoeBlock):
    """Does not heed what its router says."""

    def forward(self, hidden_BSD):
        hidden_TD = hidden_BSD.flatten(0, 1)
        _, weight_TK, index_TK = self.gate(hidden_TD)
        return self.experts(hidden_TD, index_TK, weight_TK.square()).view_as(hidden_BSD)


@pytest.mark.parametrize("block", [OtherInput, OtherWeights])
def test_blocks_in_which_a_router_cannot_take_the_place_of_the_experts_are_refused(block):
    model, inputs = make("olmoe"), batch("olmoe")
    model.model.layers[3].mlp.__class__ = block
    before = model(**inputs).logits
    with pytest.raises(UnsupportedModelError, match=f"layer 3: {block.__name__} gives its experts something else"):
        attach(model)
    assert torch.equal(model(**inputs).logits, before)


def test_a_sparse_model_of_another_build_is_not_called_dense():
    model = make("olmoe")
    for layer in model.model.layers:
        layer.mlp.gate = nn.Sequential(layer.mlp.gate)
    with pytest.raises(
        UnsupportedModelError, match=r"is sparse, but built in a way that attach does not know \(layers.0.mlp.experts\)"
    ):
        attach(model)


def test_a_bias_on_the_choice_stays_in_float32(tmp_path):
    model = make("deepseek-v3")
    for name, bias in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            bias += 10.0  # where bfloat16 has steps of a sixteenth
    model.save_pretrained(tmp_path / "own")
    own, ours = (load_model(tmp_path / "own", "bfloat16").eval() for _ in range(2))
    attach(ours, k_min=4, k_max=4, **NEUTRAL).save_pretrained(tmp_path / "ours")
    x_TD = torch.randn(500, 32, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16)
    for attached in (ours, load_model(tmp_path / "ours", "bfloat16").eval(), ours.to(torch.float64).to(torch.bfloat16)):
        router = attached.moe_blocks[1].router
        assert router.bias.value_N.dtype == torch.float32 and router.gate.weight.dtype == torch.bfloat16
        _, _, wanted_TK = own.model.layers[1].mlp.gate(x_TD)
        modality = Modality.of(torch.zeros(1, 500, dtype=torch.bool), None)
        found_TK = router.route(x_TD, modality, 4, "normalised").index_TK
        assert torch.equal(found_TK.sort(-1).values, wanted_TK.sort(-1).values)


@pytest.mark.parametrize(
    ("family", "wanted"),
    [("deepseek-v3", 3.0), ("deepseek-v3", 9.0), ("qwen3-moe", 1.2), ("olmoe", 15.0), ("olmoe", 4.4), ("olmoe", 4.6)],
)
def test_calibration_keeps_to_what_the_routers_can_choose(family, wanted):
    model, inputs = attach(make(family)), batch(family)

    def run(model):
        model(**inputs)

    mean = calibrate(model, wanted, run)
    assert real_experts_per_token(model, run) == pytest.approx(mean, abs=1e-6)
    nearest = []
    for tenth in range(5, 160):
        try:
            set_budget(model, tenth / 10 + 0.013)  # not where a range ends at half a slot, which rounds to the even one
        except ValueError:
            continue
        nearest.append(abs(real_experts_per_token(model, run) - wanted))
    assert abs(mean - wanted) <= min(nearest) + 0.1


def test_the_number_of_experts_is_set_where_the_router_takes_one():
    model, inputs = attach(make("olmoe")), batch("olmoe")
    set_experts_per_token(model, 2.0)
    assert model.config.moe.router_options["budget"] == 2.0
    model = upcycle(make_llava(), router="linear", num_experts_per_tok=2, gate="normalised")
    set_experts_per_token(model, 3)
    inputs = inputs_for("llava", (1, 0))
    assert model.config.moe.num_experts_per_tok == 3 and real_experts_per_token(model, lambda m: m(**inputs)) == 3
    with pytest.raises(ValueError, match="^experts_per_token: this router chooses a whole number of experts, not 1.5"):
        set_experts_per_token(model, 1.5)
    for router, options in (("top_p", {}), ("shuffled", {"inner": "linear"})):
        model = upcycle(make_llava(), router=router, router_options=options)
        before = model.config.evomoe
        with pytest.raises(ValueError, match=f"router '{router}' does not choose a number of experts that can be set"):
            set_experts_per_token(model, 2)
        assert model.config.evomoe == before


def test_importance_has_a_gradient_where_virtual_experts_are_to_learn():
    """A model that divides by the sum: there real experts' weights do not depend on what is added to all their scores."""
    gates = {}
    for name, options in {
        "default": {},
        "without": {"num_virtual": 0},
        "still": {"lam": 0.0},
        "asked": {"gate": "normalised"},
    }.items():
        gates[name] = attach(make("mixtral"), **options).config.moe.gate
    assert gates == {"default": "straight_through", "without": "normalised", "still": "normalised", "asked": "normalised"}


def test_gate_seed_mode_and_virtual_bias_of_what_is_new():
    model = make("deepseek-v3").train()
    torch.manual_seed(5)
    attach(model, gate="straight_through", seed=3)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), drawn)  # the caller's own chance is left alone
    block = model.moe_blocks[1]
    assert model.config.moe.gate == "straight_through" and block.router.training
    assert not attach(make("deepseek-v3")).moe_blocks[1].router.training
    same, other = (attach(make("deepseek-v3"), seed=seed).moe_blocks[1].router for seed in (3, 4))
    torch.testing.assert_close(same.gate.weight, block.router.gate.weight)
    assert not torch.equal(other.gate.weight[16:], same.gate.weight[16:])
    value_N = block.router.bias.value_N
    torch.testing.assert_close(value_N[16:], value_N[:16].mean().expand(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k_min": "2", "k_max": "4"}, "k_min: router 'anyexperts' takes a number or nothing, not '2'"),
        ({"num_virtual": 2.5}, "num_virtual: router 'anyexperts' takes a whole number or nothing, not 2.5"),
        ({"num_virtual": -1}, "must not be negative"),
        ({"output_scale": 0.0}, "must be above 0"),
        ({"groups": 3}, "16 real experts cannot stand in 3 equal groups"),
    ],
)
def test_options_are_refused_before_anything_is_changed(options, message):
    model = make("olmoe")
    with pytest.raises(ValueError, match=message):
        attach(model, **options)
    assert type(model).__name__ == "OlmoeForCausalLM"
