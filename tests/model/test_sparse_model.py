"""The sparse model as a whole: equal to the dense one for copied experts, and a good citizen of transformers."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from tiny import inputs_for, make_llava
from transformers import AutoModelForImageTextToText

from evomoe import upcycle
from evomoe.model.loading import load_model
from evomoe.model.routers import ROUTERS

NOISE = {"expert_init": "noise", "init_options": {"std": 0.1}}


NEUTRAL = {"anyexperts": {"alpha_f": 0.0}, "zero_computation": {"zero": 0, "identity": 0, "constant": 0}}
"""Options with which a router that changes its tokens, or gives some to no expert, does not."""


def logits_of_real_tokens(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits[inputs["attention_mask"].bool()]


@pytest.mark.parametrize("router", [name for name in ROUTERS])
@pytest.mark.parametrize(("gate", "top_k"), [("straight_through", 1), ("straight_through", 3), ("normalised", 2)])
def test_copied_experts_equal_the_dense_model_for_every_router(llava, router, gate, top_k):
    if router == "top_p" and gate == "normalised":
        pytest.skip("refused, see test_top_p")
    inputs = inputs_for(llava)
    before = logits_of_real_tokens(llava, inputs)
    options = dict(NEUTRAL.get(router, {}))
    if router == "anyexperts" and gate == "normalised":
        options |= {"k_min": 2, "k_max": 3}
    sparse = upcycle(llava, router=router, gate=gate, num_experts_per_tok=top_k, moe_layers="all", router_options=options)
    torch.testing.assert_close(logits_of_real_tokens(sparse, inputs), before, atol=1e-5, rtol=0)


def test_all_parts_of_an_ffn_together_equal_the_dense_model_also_after_loading(llava, tmp_path):
    inputs = inputs_for(llava)
    before = logits_of_real_tokens(llava, inputs)
    options = {"num_experts": 8, "num_experts_per_tok": 8, "router": "linear", "gate": "normalised", "moe_layers": "all"}
    sparse = upcycle(llava, expert_init="partition", shared_expert=False, **options)
    for block in sparse.moe_blocks.values():
        torch.nn.init.zeros_(block.router.gate.weight)
    torch.testing.assert_close(logits_of_real_tokens(sparse, inputs), before, atol=1e-5, rtol=0)
    sparse.save_pretrained(tmp_path)
    assert torch.equal(logits_of_real_tokens(load_model(tmp_path), inputs), logits_of_real_tokens(sparse, inputs))


def test_a_shared_expert_keeps_copied_experts_equal(llava):
    inputs = inputs_for(llava)
    before = logits_of_real_tokens(llava, inputs)
    sparse = upcycle(llava, shared_expert=True)
    torch.testing.assert_close(logits_of_real_tokens(sparse, inputs), before, atol=1e-5, rtol=0)
    sparse.moe_blocks[0].shared_expert.down_proj.weight.data.zero_()
    assert not torch.allclose(logits_of_real_tokens(sparse, inputs), before, atol=1e-3)


def test_the_probability_gate_scales_the_output(llava):
    inputs = inputs_for(llava)
    before = logits_of_real_tokens(llava, inputs)
    assert not torch.allclose(logits_of_real_tokens(upcycle(llava, gate="probability"), inputs), before, atol=1e-3)


@pytest.mark.parametrize("router", [name for name in ROUTERS if name != "fixed"])
@pytest.mark.parametrize(("gate", "alive"), [("straight_through", True), ("probability", True), ("normalised", False)])
def test_language_gradient_of_a_top_1_router(llava, router, gate, alive):
    if gate == "normalised" and router in ("anyexperts", "top_p", "zero_computation"):
        pytest.skip("refused; or, with constants, not without a gradient")
    sparse = upcycle(llava, router=router, gate=gate, aux_losses={}, **NOISE)
    inputs = inputs_for(sparse)
    sparse(**inputs, labels=inputs["input_ids"]).loss.backward()
    for block in sparse.moe_blocks.values():
        gradient = sum(p.grad.abs().sum() for p in block.router.parameters())
        assert gradient > 1e-3 if alive else gradient < 1e-5


@pytest.mark.parametrize(("init", "alive"), [("replicate", False), ("noise", True)])
def test_equal_experts_give_a_normalised_top_2_router_no_language_gradient(llava, init, alive):
    sparse = upcycle(llava, expert_init=init, gate="normalised", num_experts_per_tok=2, aux_losses={})
    inputs = inputs_for(sparse)
    sparse(**inputs, labels=inputs["input_ids"]).loss.backward()
    gradient = sum(p.grad.abs().sum() for block in sparse.moe_blocks.values() for p in block.router.parameters())
    assert gradient > 1e-4 if alive else gradient < 1e-5


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("padding", ["left", "right"])
def test_a_batch_equals_its_samples_one_by_one(llava, router, padding):
    sparse = upcycle(llava, router=router, num_experts_per_tok=2, **NOISE)
    batch = inputs_for(sparse, (1, 0, 2), padding=padding)
    together, first = sparse(**batch).logits, 0
    for i, images in enumerate((1, 0, 2)):
        real = batch["attention_mask"][i].bool()
        alone = {
            "input_ids": batch["input_ids"][i][real][None],
            "attention_mask": torch.ones(1, int(real.sum()), dtype=torch.long),
        }
        if images:
            alone["pixel_values"] = batch["pixel_values"][first : first + images]
        first += images
        torch.testing.assert_close(sparse(**alone).logits[0], together[i][real], atol=1e-5, rtol=1e-4)


def test_padding_changes_neither_loss_nor_statistics(llava):
    sparse = upcycle(llava, aux_losses={"balance": 0.5, "local": 0.1}, **NOISE)
    short = inputs_for(sparse, (1,))
    padded = {name: torch.nn.functional.pad(value, (0, 9)) if name != "pixel_values" else value for name, value in short.items()}
    labels = short["input_ids"], padded["input_ids"].masked_fill(padded["attention_mask"] == 0, -100)
    one, other = (sparse(**x, labels=y, output_router_logits=True) for x, y in zip((short, padded), labels, strict=True))
    torch.testing.assert_close(one.loss, other.loss)
    torch.testing.assert_close(one.aux_loss, other.aux_loss)
    assert one.router_logits[0].shape == other.router_logits[0].shape


def test_inference_is_deterministic(llava):
    sparse = upcycle(llava, expert_dropout=0.5, **NOISE).eval()
    inputs = inputs_for(sparse)
    assert torch.equal(sparse(**inputs).logits, sparse(**inputs).logits)
    sparse.train()
    assert not torch.equal(sparse(**inputs).logits, sparse(**inputs).logits)


@pytest.mark.parametrize("router", ROUTERS)
def test_save_and_load_is_the_identity(llava, router, tmp_path):
    sparse = upcycle(llava, router=router, shared_expert=True, **NOISE)
    inputs = inputs_for(sparse)
    sparse.save_pretrained(tmp_path)
    loaded, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert type(loaded) is type(sparse) and loaded.config.moe == sparse.config.moe
    for name, tensor in sparse.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    torch.testing.assert_close(loaded.eval()(**inputs).logits, sparse(**inputs).logits, atol=1e-6, rtol=0)


def test_experts_are_stored_one_by_one(llava, tmp_path):
    upcycle(llava).save_pretrained(tmp_path)
    from safetensors import safe_open

    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "model.language_model.layers.2.mlp.experts.3.gate_proj.weight" in file.keys()  # noqa: SIM118


def test_a_process_with_evomoe_loads_the_folder_and_one_without_refuses_it(llava, tmp_path):
    upcycle(llava).save_pretrained(tmp_path)
    load = (
        f"from transformers import AutoModelForImageTextToText as A; print(type(A.from_pretrained({str(tmp_path)!r})).__name__)"
    )
    run = [sys.executable, "-c"]
    with_evomoe = subprocess.run([*run, f"import evomoe; {load}"], capture_output=True, text=True)
    assert with_evomoe.stdout.strip() == "EvoMoELlavaForConditionalGeneration", with_evomoe.stderr
    without = subprocess.run([*run, load], capture_output=True, text=True)
    assert without.returncode != 0 and "evomoe" in without.stderr


def test_copies_of_a_model_are_independent(llava):
    sparse = upcycle(llava, **NOISE)
    inputs = inputs_for(sparse)
    twin = copy.deepcopy(sparse)
    assert torch.equal(twin(**inputs).logits, sparse(**inputs).logits)
    twin.moe_blocks[0].experts[0].down_proj.weight.data.zero_()
    assert not torch.equal(twin(**inputs).logits, sparse(**inputs).logits)


def test_loss_is_language_loss_plus_weighted_auxiliary_losses(llava):
    sparse = upcycle(llava, aux_losses={"balance": 0.5, "local": 0.25}, **NOISE)
    inputs = inputs_for(sparse)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    out = sparse(**inputs, labels=labels)
    sparse.config.evomoe["aux_losses"] = {}
    language = sparse(**inputs, labels=labels).loss
    expected = language + 0.5 * out.aux_loss["balance"] + 0.25 * out.aux_loss["local"]
    torch.testing.assert_close(out.loss, expected)


def test_auxiliary_losses_combine_over_layers_by_mean_or_sum(llava):
    sparse = upcycle(llava, moe_layers="all", **NOISE)
    inputs = inputs_for(sparse)
    mean = sparse(**inputs, labels=inputs["input_ids"]).aux_loss["balance"]
    sparse.config.evomoe["aux_reduction"] = "sum"
    torch.testing.assert_close(sparse(**inputs, labels=inputs["input_ids"]).aux_loss["balance"], 4 * mean)


def test_micro_batches_weigh_auxiliary_losses_by_their_share_of_the_target_tokens(llava):
    sparse = upcycle(llava, aux_losses={"balance": 1.0}, **NOISE)
    inputs = inputs_for(sparse, (1,))
    labels = inputs["input_ids"]
    targets = int((labels[:, 1:] != -100).sum())
    whole = sparse(**inputs, labels=labels, num_items_in_batch=targets)
    half = sparse(**inputs, labels=labels, num_items_in_batch=2 * targets)
    torch.testing.assert_close(half.loss, whole.loss / 2)


def test_tuple_output_and_generation_signature(llava):
    sparse = upcycle(llava)
    inputs = inputs_for(sparse)
    assert isinstance(sparse(**inputs, return_dict=False), tuple)
    with pytest.raises(ValueError, match="pixel_valuez"):
        sparse.generate(**inputs, pixel_valuez=1, max_new_tokens=1)


def test_config_json_says_what_the_network_is(llava, tmp_path):
    upcycle(llava, num_experts=3, router="linear").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "evomoe" and config["architectures"] == ["EvoMoELlavaForConditionalGeneration"]
    assert config["evomoe"]["base_model_type"] == "llava" and config["evomoe"]["num_experts"] == 3


def test_a_sparse_model_can_be_built_from_its_configuration():
    sparse = upcycle(make_llava(), shared_expert=True)
    fresh = type(sparse)(sparse.config)
    assert {n: p.shape for n, p in fresh.named_parameters()} == {n: p.shape for n, p in sparse.named_parameters()}
    # The router keeps the scale that it draws for itself; transformers' own initialisation would flatten it.
    down = fresh.moe_blocks[0].router.image.down.weight
    assert down.std().item() == pytest.approx((32 * 65) ** -0.5, rel=0.1)


def test_inputs_of_another_precision_or_device_are_named(llava):
    sparse, inputs = upcycle(llava), inputs_for(llava, (0, 0))
    with pytest.raises(ValueError, match=r"input_ids is on meta, the model on cpu; pass inputs.to\(model.device\)"):
        sparse(**{name: value.to("meta") for name, value in inputs.items()})
    with pytest.raises(ValueError, match="attention_mask is on meta, the model on cpu"):
        sparse(**inputs | {"attention_mask": inputs["attention_mask"].to("meta")})
    embeds = sparse.get_input_embeddings()(inputs.pop("input_ids"))
    with pytest.raises(ValueError, match=r"inputs_embeds is torch.float32, the model torch.bfloat16; pass inputs.to\("):
        sparse.to(torch.bfloat16)(**inputs, inputs_embeds=embeds)


def test_an_error_of_the_model_itself_is_left_as_it_is(llava):
    sparse, inputs = upcycle(llava), inputs_for(llava)
    sparse.model.language_model.layers[1].mlp.forward = lambda x: torch.ones(2, 3) @ torch.ones(2, 3)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        sparse(**inputs)
    sparse.to(torch.bfloat16)  # float32 pixels are right for it: the tower casts them
    sparse.model.language_model.layers[1].mlp.forward = _out_of_memory
    with pytest.raises(torch.OutOfMemoryError):
        sparse(**inputs)


def _out_of_memory(x):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
