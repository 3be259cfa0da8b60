"""What is measured on experts and routers, against answers that are known."""

import copy

import pytest
import torch
from tiny import inputs_for, make_llava
from torch import nn

from evomoe import upcycle
from evomoe.analysis.interventions import only_expert, replaced_routers, shuffled_routers
from evomoe.analysis.routing import RoutingStatistics, routing_statistics
from evomoe.model.routers.router import Router
from evomoe.model.structure import decoder_layers

NOISE = {"expert_init": "noise", "init_options": {"std": 0.1}}


def measure(model, batches=None, **options) -> RoutingStatistics:
    return routing_statistics(model, [inputs_for(model, (1, 0, 2))] if batches is None else batches, **options)


@pytest.mark.parametrize("top_k", [1, 2])
def test_loads_add_up_per_modality_and_over_all_tokens(llava, top_k):
    statistics = measure(upcycle(llava, num_experts_per_tok=top_k, moe_layers=[1, 3], **NOISE))
    assert statistics.layers == [1, 3] and statistics.load_LME.shape == (2, 2, 4)
    torch.testing.assert_close(statistics.load_LME.sum(-1), torch.ones(2, 2, dtype=torch.float64))
    torch.testing.assert_close(statistics.real_load_LE.sum(-1), torch.ones(2, dtype=torch.float64))
    for shares in statistics.expert_load().values():
        assert len(shares) == 4 and sum(shares) == pytest.approx(1)


class ByPosition(Router):
    """A router with known answers: expert 0 for text, experts 1 and 2 in turn for image tokens."""

    def forward(self, x_TD, modality):
        expert_T = torch.where(modality.is_image_T, 1 + torch.arange(x_TD.shape[0]) % 2, 0)
        return 10.0 * nn.functional.one_hot(expert_T, self.num_experts).float()


def test_loads_by_hand(llava):
    sparse = upcycle(llava, **NOISE)
    with replaced_routers(sparse, lambda router, layer: ByPosition(router.hidden_size, router.num_experts)):
        statistics = measure(sparse, [inputs_for(sparse, (1, 0))])  # 4 image, 6 + 7 text tokens
    expected = torch.tensor([[1, 0, 0, 0], [0, 0.5, 0.5, 0]], dtype=torch.float64)
    torch.testing.assert_close(statistics.load_LME, expected.expand(2, 2, 4))
    torch.testing.assert_close(statistics.real_load_LE, torch.tensor([[13, 2, 2, 0]] * 2, dtype=torch.float64) / 17)
    assert statistics.expert_load() == {"text": [1, 0, 0, 0], "image": [0, 0.5, 0.5, 0]}
    for by_modality in statistics.logits:
        assert {name: len(values) for name, values in by_modality.items()} == {"text": 13, "image": 4}
        assert by_modality["text"][:, 0].eq(10).all() and by_modality["image"][:, 0].eq(0).all()


@pytest.mark.parametrize("padding", ["left", "right"])
def test_padding_counts_nowhere(llava, padding):
    sparse = upcycle(llava, **NOISE)
    together = measure(sparse, [inputs_for(sparse, (1, 0, 2), padding=padding)])
    batch, alone, first = inputs_for(sparse, (1, 0, 2), padding=padding), [], 0
    for i, images in enumerate((1, 0, 2)):
        real = batch["attention_mask"][i].bool()
        pixels = {"pixel_values": batch["pixel_values"][first : first + images]} if images else {}
        alone.append({"input_ids": batch["input_ids"][i][real][None], **pixels})
        first += images
    one_by_one = measure(sparse, alone)
    torch.testing.assert_close(together.load_LME, one_by_one.load_LME)
    torch.testing.assert_close(together.real_load_LE, one_by_one.real_load_LE)
    assert [len(values) for values in together.logits[0].values()] == [len(values) for values in one_by_one.logits[0].values()]
    torch.testing.assert_close(together.cka_LEE, one_by_one.cka_LEE, atol=1e-4, rtol=1e-4)


def test_a_fixed_router_loads_one_expert(llava):
    statistics = measure(upcycle(llava, router="fixed", router_options={"expert": 2}))
    assert statistics.load_LME[..., 2].eq(1).all() and statistics.load_LME.sum() == 4
    assert statistics.metrics()["effective_experts"] == pytest.approx([1, 1])


def test_copied_experts_have_cka_1_and_other_experts_less(llava):
    other = upcycle(make_llava(), expert_init="drop_upcycling", init_options={"ratio": 1.0})
    assert measure(upcycle(llava)).means()["cka"] == pytest.approx(1)
    assert measure(other).means()["cka"] < 0.9


def test_measuring_leaves_the_model_in_its_mode_and_needs_a_batch(llava):
    sparse = upcycle(llava, expert_dropout=0.5, **NOISE).train()
    first, again = measure(sparse), measure(sparse)
    assert sparse.training and torch.equal(first.load_LME, again.load_LME)
    measure(sparse.eval())
    assert not sparse.training
    with pytest.raises(ValueError, match="at least one batch"):
        measure(sparse, [])


def test_samples_are_limited_and_drawn_by_the_seed(llava):
    sparse = upcycle(llava, **NOISE)
    batches = [inputs_for(sparse, (0, 0)), inputs_for(sparse, (0, 0, 0))]  # words only
    small = [measure(sparse, batches, max_tokens=5, seed=seed).logits[0] for seed in (0, 0, 1)]
    assert all(len(values["text"]) == 5 and len(values["image"]) == 0 for values in small)
    assert torch.equal(small[0]["text"], small[1]["text"]) and not torch.equal(small[0]["text"], small[2]["text"])


@pytest.mark.parametrize("replaced", [lambda m: only_expert(m, 1), lambda m: shuffled_routers(m, 3)], ids=["only", "shuffled"])
def test_routers_are_put_back_also_after_an_error(llava, replaced):
    sparse = upcycle(llava, **NOISE)
    own = {layer: block.router for layer, block in sparse.moe_blocks.items()}
    with replaced(sparse) as model:
        assert model is sparse and all(block.router is not own[layer] for layer, block in sparse.moe_blocks.items())
    with pytest.raises(RuntimeError, match="stop"), replaced(sparse):
        raise RuntimeError("stop")
    with pytest.raises(ValueError, match="expert 9 does not exist"), only_expert(sparse, 9):
        pass
    assert all(block.router is own[layer] for layer, block in sparse.moe_blocks.items())


@pytest.mark.parametrize("gate", ["straight_through", "probability"])
@pytest.mark.parametrize("expert", [0, 3])
def test_one_expert_alone_equals_the_dense_model_with_its_ffn(llava, gate, expert):
    dense, inputs = copy.deepcopy(llava), inputs_for(llava)
    sparse = upcycle(llava, gate=gate, **NOISE)
    for index, block in sparse.moe_blocks.items():
        decoder_layers(dense)[index].mlp = block.experts[expert]
    real = inputs["attention_mask"].bool()
    with only_expert(sparse, expert):
        alone = sparse(**inputs).logits[real]
    torch.testing.assert_close(alone, dense(**inputs).logits[real], atol=1e-5, rtol=0)
    with only_expert(sparse, 1):
        assert not torch.allclose(sparse(**inputs).logits[real], alone, atol=1e-3)


def test_a_shuffle_permutes_each_layer_s_logits(llava):
    sparse = upcycle(llava, **NOISE)
    inputs = inputs_for(sparse)
    before = sparse(**inputs, output_router_logits=True).router_logits[0]
    with shuffled_routers(sparse, 1):
        after = sparse(**inputs, output_router_logits=True).router_logits[0]
        permutations = [block.router.permutation for block in sparse.moe_blocks.values()]
    assert torch.equal(after, before[:, permutations[0]]) and not torch.equal(after, before)
    with shuffled_routers(sparse, 2):
        assert [block.router.permutation for block in sparse.moe_blocks.values()] != permutations


def test_a_shuffle_does_not_matter_to_copied_experts(llava):
    sparse = upcycle(llava)
    inputs = inputs_for(sparse)
    before = sparse(**inputs).logits
    with shuffled_routers(sparse, 1):
        torch.testing.assert_close(sparse(**inputs).logits, before, atol=1e-5, rtol=0)
