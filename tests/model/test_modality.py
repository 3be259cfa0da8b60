"""The kind of every token is right in every way a model can be called."""

import pytest
import torch
from tiny import IMAGE_TOKEN, IMAGE_TOKENS, inputs_for, make_llava

from evomoe import upcycle
from evomoe.model.forward_pass import ForwardPass, current_pass, running
from evomoe.model.modality import Modality, modality_of_inputs


def sparse_llava(**fields):
    torch.manual_seed(0)
    return upcycle(make_llava().eval(), expert_init="noise", init_options={"std": 0.1}, **fields)


def kinds(model, **inputs) -> list[str]:
    """What each MoE layer of one forward saw, as a string of i(mage) and t(ext); all layers must agree."""
    records = model(**inputs, output_router_logits=True)["records"].values()
    seen = {"".join("i" if image else "t" for image in record.modality.is_image_T.tolist()) for record in records}
    assert len(records) == len(model.moe_blocks) and len(seen) == 1
    return seen.pop()


def embed_nothing(token):
    raise AssertionError("input ids were given")


@pytest.mark.parametrize("padding", ["left", "right"])
def test_images_text_and_padding_are_told_apart(padding):
    model = sparse_llava()
    seen = kinds(model, **inputs_for(model, images=(2, 0, 1), text=3, padding=padding))
    assert seen == "t" + 8 * "i" + 3 * "t" + "ttttt" + "t" + 4 * "i" + 5 * "t"


def test_without_images_all_is_text():
    model = sparse_llava()
    assert set(kinds(model, **inputs_for(model, images=(0, 0)))) == {"t"}


def test_decoded_tokens_are_text_and_the_prompt_keeps_its_kinds():
    model, seen = sparse_llava(), []
    block = model.moe_blocks[0]
    handle = block.register_forward_pre_hook(lambda *_: seen.append(current_pass().modality))
    inputs = inputs_for(model, images=(1, 1), padding="left")
    model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    handle.remove()
    assert [m.shape for m in seen] == [tuple(inputs["input_ids"].shape)] + [(2, 1)] * 3
    assert int(seen[0].is_image_T.sum()) == 2 * IMAGE_TOKENS
    assert all(not m.is_image_T.any() and m.position_T is None for m in seen[1:])


def test_beam_search_repeats_the_kinds_for_every_beam():
    model, seen = sparse_llava(), []
    model.moe_blocks[0].register_forward_pre_hook(lambda *_: seen.append(current_pass().modality))
    inputs = inputs_for(model, images=(1, 0), padding="left")
    model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, num_beams=3, do_sample=False)
    assert seen[0].shape[0] in (2, 6) and int(seen[0].is_image_T.sum()) == IMAGE_TOKENS * seen[0].shape[0] // 2
    assert seen[-1].shape == (6, 1) and not seen[-1].is_image_T.any()


def test_inputs_embeds_are_recognised_by_the_placeholder_embedding():
    model = sparse_llava()
    inputs = inputs_for(model, images=(1, 0))
    by_ids, logits = kinds(model, **inputs), model(**inputs).logits
    embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
    assert kinds(model, inputs_embeds=embeds, **inputs) == by_ids
    torch.testing.assert_close(model(inputs_embeds=embeds, **inputs).logits, logits)


def test_modality_can_be_given_for_embeddings_with_the_picture_merged_in():
    model = sparse_llava()
    is_image_BS = torch.tensor([[False, True, True, False]])
    embeds = torch.randn(1, 4, 32)
    assert kinds(model, inputs_embeds=embeds, modality=Modality.of(is_image_BS, None)) == "tiit"


def test_ready_made_masks_are_read_as_transformers_writes_them():
    ids = torch.tensor([[0, 0, 5, 6], [3, 4, 5, 6]])
    real = ids != 0
    causal = torch.ones(4, 4).tril().bool()
    as_bool = (causal & real[:, None, None, :]).clone()
    as_float = torch.zeros(2, 1, 4, 4).masked_fill(~as_bool, torch.finfo(torch.float32).min)
    expected = modality_of_inputs((IMAGE_TOKEN,), ids, None, real.long(), embed_nothing)
    for mask in (as_bool, as_float, {"sliding_attention": as_bool[..., :0], "full_attention": as_float}):
        found = modality_of_inputs((IMAGE_TOKEN,), ids, None, mask, embed_nothing)
        assert torch.equal(found.position_T, expected.position_T)


def test_packed_documents_are_all_real():
    ids = torch.full((1, 6), 7)
    document = torch.tensor([0, 0, 0, 1, 1, 1])
    packed = (torch.ones(6, 6).tril().bool() & (document[:, None] == document[None]))[None, None]
    assert modality_of_inputs((IMAGE_TOKEN,), ids, None, packed, embed_nothing).position_T is None


@pytest.mark.parametrize(("keys", "past"), [(8, 0), (8, 4), (4, 0), (4, 6)])
def test_static_and_sliding_caches_keep_the_padding(keys, past):
    ids = torch.full((2, 4), 7)
    first = past if past + 4 <= keys else keys - 4
    mask = torch.zeros(2, 1, 4, keys, dtype=torch.bool)
    for query in range(4):
        mask[1, 0, query, first + query] = True
        mask[0, 0, query, first + query] = query >= 2
    found = modality_of_inputs((IMAGE_TOKEN,), ids, None, mask, embed_nothing, past_length=past)
    assert found.position_T.tolist() == [2, 3, 4, 5, 6, 7]


def test_a_static_cache_with_a_sliding_window_generates_what_a_growing_one_does():
    from tiny.families import make_llava, text_fields
    from transformers import MistralConfig

    torch.manual_seed(0)
    dense = make_llava(MistralConfig(**text_fields(), sliding_window=4)).eval()
    model = upcycle(dense, expert_init="noise", init_options={"std": 0.1})
    inputs = inputs_for(model, images=(1, 1), text=8, padding="left")
    options = {
        "max_new_tokens": 5,
        "min_new_tokens": 5,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    growing = model.generate(**inputs, **options)
    static = model.generate(**inputs, **options, cache_implementation="static", disable_compile=True)
    torch.testing.assert_close(torch.stack(static.logits), torch.stack(growing.logits), atol=1e-5, rtol=1e-4)


def test_a_recomputed_layer_leaves_the_records_of_its_first_run():
    model = sparse_llava(router="linear", aux_losses={"balance": 1.0}).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    inputs = inputs_for(model)
    out = model(**inputs, labels=inputs["input_ids"], output_router_logits=True)
    records = dict(out["records"])
    forward_passes = []
    for block in model.moe_blocks.values():
        block.register_forward_pre_hook(lambda *_: forward_passes.append(current_pass()))
    out.loss.backward()
    assert forward_passes and all(not forward_pass.recording for forward_pass in forward_passes)
    assert all(out["records"][layer] is record for layer, record in records.items())


def test_the_mask_of_a_cached_step_covers_its_own_tokens_only():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    found = modality_of_inputs((IMAGE_TOKEN,), torch.tensor([[7], [8]]), None, mask, embed_nothing, past_length=4)
    assert found.position_T is None and found.shape == (2, 1)


def test_checkpointed_layers_see_their_own_pass_even_with_two_forwards_before_a_backward():
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        model = sparse_llava(router="modality").train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        first, second = inputs_for(model, images=(2,), text=6), inputs_for(model, images=(0, 1), text=9)
        losses = [model(**batch, labels=batch["input_ids"]).loss for batch in (first, second)]
        (losses[0] + 2 * losses[1]).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    for plain, checkpointed in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_the_pass_ends_with_its_forward():
    model = sparse_llava()
    model(**inputs_for(model))
    with pytest.raises(RuntimeError, match="which tokens are image"):
        current_pass()


def test_a_block_called_alone_says_what_to_do():
    block = sparse_llava().moe_blocks[0]
    with pytest.raises(RuntimeError, match="Call the whole EvoMoE model"):
        block(torch.randn(1, 3, 32))
    with running(ForwardPass(Modality.of(torch.zeros(1, 3, dtype=torch.bool), None))):
        assert block(torch.randn(1, 3, 32)).shape == (1, 3, 32)


def test_a_sequence_of_another_length_than_announced_is_refused():
    block = sparse_llava().moe_blocks[0]
    announced = ForwardPass(Modality.of(torch.zeros(1, 4, dtype=torch.bool), None))
    with running(announced), pytest.raises(ValueError, match="3 tokens, but the forward pass announced 1 x 4"):
        block(torch.randn(1, 3, 32))
