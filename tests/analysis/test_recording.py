"""Recordings of a sparse model's passes, and the numbers that are made of them."""

import math

import pytest
import torch
from tiny import inputs_for, make_llava
from torch import nn

from evomoe import upcycle
from evomoe.analysis.evaluation_mode import language_loss
from evomoe.analysis.image_swap import changed_by_pictures, swap_pictures
from evomoe.analysis.interventions import each_alone, only_expert, replaced_routers, shuffle_test
from evomoe.analysis.recording import record_routing
from evomoe.analysis.routing import routing_statistics, statistics_of
from evomoe.analysis.symmetry import symmetry_gradients
from evomoe.analysis.task_vectors import task_vector_cosines
from evomoe.analysis.uniformity import effect_spread, symmetry_gradient
from evomoe.model.routers.router import Router

NOISE = {"expert_init": "noise", "init_options": {"std": 0.1}}


def labelled(model, images=(1, 0, 2)) -> dict[str, torch.Tensor]:
    batch = inputs_for(model, images)
    return batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


class ByModality(Router):
    """Expert 0 for text, expert 1 for image tokens."""

    def forward(self, x_TD, modality):
        return 10.0 * nn.functional.one_hot(modality.is_image_T.long(), self.num_experts).float()


class OfOneImageToken(Router):
    """Expert 1 for image tokens whose first feature is positive, else expert 0."""

    def forward(self, x_TD, modality):
        return 10.0 * nn.functional.one_hot((modality.is_image_T & (x_TD[:, 0] > 0)).long(), self.num_experts).float()


def using(model, router_class):
    return replaced_routers(model, lambda router, layer: router_class(router.hidden_size, router.num_experts))


def test_every_pass_in_the_block_is_recorded_and_none_after_it(llava):
    sparse = upcycle(llava, **NOISE).eval()
    inputs = inputs_for(sparse, (1, 0))  # 4 image, 6 + 7 text tokens
    with record_routing(sparse) as recording:
        first = sparse(**inputs)
        sparse(**inputs, use_cache=False)
    sparse(**inputs)
    assert list(recording.counts) == [0, 2] and recording.counts[0].sum(-1).tolist() == [2 * 13, 2 * 4]
    torch.testing.assert_close(first.logits, sparse(**inputs).logits)
    assert sparse(**inputs).get("records") is None


def test_prompts_alone_can_be_recorded(llava):
    sparse = upcycle(llava, **NOISE).eval()
    inputs = inputs_for(sparse, (1, 0))
    with record_routing(sparse, prompts_only=True) as recording:
        sparse.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert recording.tokens == int(inputs["attention_mask"].sum()) == 17


def test_decoded_tokens_are_recorded_as_text(llava):
    sparse = upcycle(llava, **NOISE).eval()
    inputs = inputs_for(sparse, (1,))
    with record_routing(sparse) as recording:
        sparse.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    text, image = recording.counts[2].sum(-1).tolist()
    assert (text, image) == (inputs["input_ids"].shape[1] - 4 + 3, 4)  # the last one is not fed back


def test_a_recording_changes_no_output_and_ends_also_after_an_error(llava):
    sparse = upcycle(llava, **NOISE).eval()
    inputs = inputs_for(sparse)
    plain = sparse(**inputs, return_dict=False)
    with record_routing(sparse):
        watched = sparse(**inputs, return_dict=False)
    assert isinstance(watched, tuple) and torch.equal(watched[0], plain[0])
    with pytest.raises(RuntimeError, match="stop"), record_routing(sparse) as recording:
        raise RuntimeError("stop")
    sparse(**inputs)
    assert not recording.counts


def test_a_dense_model_has_nothing_to_record(llava):
    with (
        pytest.raises(ValueError, match="LlavaForConditionalGeneration is not an EvoMoE model.*evomoe upcycle"),
        record_routing(llava),
    ):
        pass


def test_memory_is_bounded_and_every_token_as_likely_to_be_kept(llava):
    sparse = upcycle(llava, **NOISE).eval()
    inputs = inputs_for(sparse, (0, 0, 0))
    real = int(inputs["attention_mask"].sum())
    kept_of_first = 0
    for seed in range(60):
        with record_routing(sparse, max_tokens=6, seed=seed) as recording:
            sparse(**inputs)
            first = recording.samples["text"].inputs[0].clone()
            sparse(**inputs)
        sample = recording.samples["text"]
        assert len(sample.inputs[0]) == len(sample.logits[2]) == 6 and len(sample.inputs[2]) == 6
        kept_of_first += sum(bool((row == first).all(-1).any()) for row in sample.inputs[0])
    # Each pass has the same tokens, so that a kept row equals one of the first six also by chance.
    expected = 6 * (0.5 + 0.5 * 6 / real)
    assert kept_of_first / 60 == pytest.approx(expected, rel=0.15)


def test_a_layer_s_sample_holds_inputs_and_logits_of_the_same_tokens(llava):
    sparse = upcycle(llava, router="linear", **NOISE).eval()
    with record_routing(sparse, max_tokens=5) as recording:
        for images in ((1, 0), (2, 1), (0, 1)):
            sparse(**inputs_for(sparse, images))
    for sample in recording.samples.values():
        for layer, block in sparse.moe_blocks.items():
            torch.testing.assert_close(block.router.gate(sample.inputs[layer]), sample.logits[layer])


@pytest.mark.parametrize("router_class", [ByModality, None], ids=["by modality", "blind"])
def test_rigidity_of_a_router_that_knows_the_modality_and_of_one_that_does_not(llava, router_class):
    sparse = upcycle(llava, **NOISE)
    with using(sparse, ByModality) if router_class else only_expert(sparse, 1):
        metrics = routing_statistics(sparse, [inputs_for(sparse, (1, 0, 2))]).means()
    if router_class:
        assert metrics["nmi"] == pytest.approx(1) and metrics["jensen_shannon"] == pytest.approx(1)
        # Of four experts' logits, those of the two that are used are apart; those of the others are constant.
        assert metrics["logit_overlap"] == pytest.approx(0.5, abs=1e-6)
        assert metrics["dead_experts"] == 2
    else:
        assert metrics["nmi"] == 0 and metrics["jensen_shannon"] == 0 and metrics["logit_overlap"] == 1
        assert (
            metrics["effective_experts"] == 1
            and metrics["dead_experts"] == 3
            and metrics["load_variation"] == pytest.approx(3**0.5)
        )


def test_the_experts_are_compared_on_tokens_in_the_data_s_proportions(llava, monkeypatch):
    sparse = upcycle(llava, **NOISE).eval()
    with record_routing(sparse, max_tokens=10) as recording:
        sparse(**inputs_for(sparse, (1, 0, 0)))  # 4 image, 21 text tokens
    seen = []
    block = sparse.moe_blocks[0]
    handle = block.experts[0].register_forward_hook(lambda module, args, out: seen.append(args[0]))
    statistics = statistics_of(sparse, recording)
    handle.remove()
    text, image = (recording.samples[name].inputs[0] for name in ("text", "image"))
    assert torch.equal(seen[0], torch.cat([text[:8], image[:2]])) and len(text) == 10
    assert statistics.means()["cka"] < 1 and statistics.means()["output_cosine"] < 1


def test_copies_are_uniform_by_every_number(llava):
    sparse = upcycle(llava)
    batches = [labelled(sparse)]
    means = routing_statistics(sparse, [inputs_for(sparse, (1, 0, 2))]).means()
    assert means["cka"] == pytest.approx(1) and means["output_cosine"] == pytest.approx(1)
    assert max(symmetry_gradients(sparse, batches).values()) < 1e-5
    own, shuffled = shuffle_test(sparse, lambda model: language_loss(model, batches))
    assert len(shuffled) == 8 and shuffled == pytest.approx([own] * 8, abs=1e-5)
    assert each_alone(sparse, lambda model: language_loss(model, batches)) == pytest.approx([own] * 4, abs=1e-5)


def test_other_experts_differ_by_every_number(llava):
    sparse = upcycle(llava, gate="probability", expert_init="drop_upcycling", init_options={"ratio": 1.0})
    batches = [labelled(sparse)]
    gradients = symmetry_gradients(sparse, batches)
    assert list(gradients) == [0, 2] and all(0.1 < value < 1 for value in gradients.values())
    own, shuffled = shuffle_test(sparse, lambda model: language_loss(model, batches), shuffles=3)
    assert len(set(shuffled)) == 3 and own not in shuffled
    assert len(set(each_alone(sparse, lambda model: language_loss(model, batches)))) == 4


@pytest.mark.parametrize("kind", ["zero", "identity", "constant"])
def test_virtual_experts_have_effects_too(llava, kind):
    """As above, and importance 1/2 strengthens what all are given."""
    options = {
        "virtual": kind,
        "num_virtual": 2,
        "k_min": 4,
        "k_max": 4,
        "rho": 0.5,
        "cap_scope": "expectation",
        "over": "all",
        "alpha_f": 0.5,
    }
    sparse = upcycle(llava, router="anyexperts", router_options=options, num_experts_per_tok=4, moe_layers=[2], **NOISE).eval()
    if kind == "constant":
        torch.nn.init.normal_(sparse.moe_blocks[2].router.virtual.constants)
    batch = labelled(sparse)
    (value,) = symmetry_gradients(sparse, [batch]).values()
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    taps = []
    hook = sparse.moe_blocks[2].register_forward_hook(lambda module, args, y: taps.append(y) or y)
    out = sparse(**inputs, output_router_logits=True)
    hook.remove()
    total = nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
    (gradient_BSD,) = torch.autograd.grad(total, taps)
    record = out.records[2]
    gradient_TD, x_TD = record.modality.real(gradient_BSD), 1.25 * record.x_TD
    virtual = {"zero": [0 * x_TD] * 2, "identity": [x_TD] * 2}.get(kind)
    virtual = virtual or [constant.expand_as(x_TD) for constant in sparse.moe_blocks[2].router.virtual.constants]
    effect_TN = torch.stack(
        [(gradient_TD * y_TD).sum(-1) for y_TD in [*(expert(x_TD) for expert in record.experts), *virtual]], -1
    )
    expected = symmetry_gradient(*(part.item() for part in effect_spread(effect_TN, record.routing.probs_TE)))
    assert value == pytest.approx(expected, rel=1e-4)


def test_the_symmetry_gradient_is_that_of_the_whole_model(llava):
    """With all experts mixed by probabilities, the gradient at a layer's logits is ``p (effect - mean)``: summed over its bias."""
    sparse = upcycle(llava, router="dtr", num_experts_per_tok=4, gate="normalised", moe_layers=[2], **NOISE).eval()
    batch = labelled(sparse)
    with record_routing(sparse) as recording:
        (value,) = symmetry_gradients(sparse, [batch]).values()
    assert recording.counts[2].sum() > 0 and 0 < value < 1
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    out = sparse(**inputs, output_router_logits=True)
    routing, (loss, targets) = out.records[2].routing, (out.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    total = nn.functional.cross_entropy(loss, targets, reduction="sum")
    (gradient_TE,) = torch.autograd.grad(total, routing.logits_TE, retain_graph=True)
    (effect_TE,) = torch.autograd.grad(total, routing.weight_TK)
    by_expert_TE = torch.empty_like(effect_TE).scatter(1, routing.index_TK, effect_TE)
    probs_TE = routing.probs_TE
    expected = (gradient_TE.square() / probs_TE).sum() / (probs_TE * by_expert_TE.square()).sum()
    assert value == pytest.approx(expected.sqrt().item(), rel=1e-4)


def test_measuring_gradients_leaves_none_and_no_mode_behind(llava):
    sparse = upcycle(llava, **NOISE).train()
    symmetry_gradients(sparse, [labelled(sparse)])
    language_loss(sparse, [labelled(sparse)])
    assert sparse.training and all(parameter.grad is None for parameter in sparse.parameters())
    assert not any(module._forward_hooks for block in sparse.moe_blocks.values() for module in block.experts.modules())


def test_the_language_loss_is_the_models_without_the_auxiliary_one(llava):
    sparse = upcycle(llava, aux_losses={}, **NOISE).eval()
    batch = labelled(sparse)
    assert language_loss(sparse, [batch]) == pytest.approx(sparse(**batch).loss.item(), rel=1e-5)
    with_balance = upcycle(make_llava(), aux_losses={"balance": 100.0})
    assert language_loss(with_balance, [batch]) < 50
    with pytest.raises(ValueError, match="at least one batch"):
        language_loss(sparse, [])


def test_task_vectors_point_from_the_dense_model_to_the_experts(llava):
    dense, sparse = make_llava(), upcycle(llava)
    dense.load_state_dict(sparse.state_dict(), strict=False)
    ffn = {index: dense.get_decoder().layers[index].mlp for index in sparse.moe_blocks}
    with torch.no_grad():
        for index, block in sparse.moe_blocks.items():
            for start, *weights in zip(ffn[index].parameters(), *(expert.parameters() for expert in block.experts), strict=True):
                start.copy_(weights[0])
                way = torch.randn(start.shape, generator=torch.Generator().manual_seed(index))
                for weight, length in zip(weights, (0.5, 1.0, 2.0, 1.0), strict=True):
                    weight.add_(length * way)
    assert task_vector_cosines(sparse, dense) == pytest.approx({0: 1.0, 2: 1.0}, abs=1e-4)
    nothing = task_vector_cosines(upcycle(make_llava()), make_llava())
    untouched = upcycle(make_llava())
    for index, block in untouched.moe_blocks.items():
        ffn[index].load_state_dict(block.experts[0].state_dict())
    assert all(math.isnan(value) for value in task_vector_cosines(untouched, dense).values()) and nothing
    other = make_llava()
    other.get_decoder().layers[2].mlp.up_proj = nn.Linear(32, 40, bias=False)
    with pytest.raises(ValueError, match="^stage1: the FFN of its layer 2 is not of the experts' shape"):
        task_vector_cosines(sparse, other)


def item(value: float, images: int = 1, words: int = 3, shape: tuple[int, ...] = (1, 3, 16, 16)) -> dict[str, torch.Tensor]:
    ids = torch.tensor([1, *[120] * 4 * images, *[5] * words])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | (
        {"pixel_values": torch.full(shape, value)} if images else {}
    )


def test_pictures_go_round_among_records_that_look_alike():
    items = [item(1.0), item(0.0, images=0), item(2.0, words=5), item(9.0, shape=(1, 3, 8, 8)), item(2.0), item(7.0, images=2)]
    pairs = swap_pictures(items, [120])
    assert [own is items[i] for (own, _), i in zip(pairs, (0, 4), strict=True)] == [True, True]
    assert [other["pixel_values"].unique().item() for _, other in pairs] == [2.0, 1.0]
    assert all(torch.equal(own["input_ids"], other["input_ids"]) for own, other in pairs)
    assert swap_pictures([item(3.0), item(3.0)], [120]) == []


def test_only_the_picture_changes_the_tokens_that_look_at_it(llava):
    sparse = upcycle(llava, **NOISE)
    before = inputs_for(sparse, (1, 1))
    after = before | {"pixel_values": before["pixel_values"].flip(0)}
    with using(sparse, ByModality):
        assert changed_by_pictures(sparse, [(before, after)]) == {"text": {0: 0.0, 2: 0.0}, "image": {0: 0.0, 2: 0.0}}
    with using(sparse, OfOneImageToken):
        changed = changed_by_pictures(sparse, [(before, after), (after, after)])
        records = [sparse(**batch, output_router_logits=True)["records"][0] for batch in (before, after)]
        image_T = records[0].modality.is_image_T
        differ = (records[0].routing.index_TK != records[1].routing.index_TK).squeeze(-1)[image_T]
    assert differ.sum() > 0 and changed["image"][0] == pytest.approx(differ.float().mean().item() / 2)
    assert changed["text"] == {0: 0.0, 2: 0.0}
    assert changed_by_pictures(sparse, []) == {"text": {}, "image": {}}
