"""What people do with a Hugging Face model every day must work with a sparse one, in several families."""

import copy
import pickle
import shutil
from pathlib import Path

import peft
import pytest
import torch
from tiny import inputs_for, make
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import AutoModelForImageTextToText, PreTrainedModel, TrainingArguments

from evomoe import upcycle
from evomoe.recipe.options import EvolutionOptions
from evomoe.training.callbacks import EvolutionCallback
from evomoe.training.trainable import set_trainable
from evomoe.training.trainer import EvoMoETrainer

NOISE = {"expert_init": "noise", "init_options": {"std": 0.1}}
slow = pytest.mark.slow
several_families = pytest.mark.parametrize(
    "family",
    ["llava", *(pytest.param(name, marks=slow) for name in ("llava-phi", "idefics3", "qwen2.5-vl", "gemma3", "internvl"))],
)


def make_sparse(family: str, **options) -> PreTrainedModel:
    return upcycle(make(family), **NOISE | options)


def row(batch: dict, i: int, images: tuple[int, ...]) -> dict:
    """Row ``i`` of a batch as a batch of its own, without padding."""
    real, before = batch["attention_mask"][i].bool(), sum(images[:i])
    alone = {}
    for name, value in batch.items():
        if name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
            alone[name] = value[i : i + 1, real]
        elif images[i]:
            per_picture = len(value) // (len(images) if len(value) == len(images) and value.ndim == 5 else sum(images))
            start = i if value.ndim == 5 else before * per_picture
            count = 1 if value.ndim == 5 else images[i] * per_picture
            alone[name] = value[start : start + count, : images[i]] if value.ndim == 5 else value[start : start + count]
    return alone


@several_families
@pytest.mark.parametrize("padding", ["left", "right"])
def test_a_padded_batch_equals_its_rows_one_by_one(family, padding):
    sparse, images = make_sparse(family, num_experts_per_tok=2), (1, 0, 2)
    batch = inputs_for(family, images, padding=padding)
    with torch.no_grad():
        together = sparse(**batch).logits
        for i in range(len(images)):
            alone = sparse(**row(batch, i, images)).logits[0]
            torch.testing.assert_close(together[i][batch["attention_mask"][i].bool()], alone, atol=1e-5, rtol=1e-4)


@several_families
def test_a_batch_generates_what_its_rows_generate_alone(family):
    sparse, images = make_sparse(family), (1, 0, 2)
    batch, options = inputs_for(family, images, padding="left"), {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    together = sparse.generate(**batch, **options)[:, -6:]
    for i in range(len(images)):
        assert torch.equal(sparse.generate(**row(batch, i, images), **options)[0, -6:], together[i])


@several_families
@pytest.mark.parametrize("options", [{"num_beams": 3, "do_sample": False}, {"do_sample": True, "temperature": 0.7, "top_k": 20}])
def test_beam_search_and_sampling_with_copied_experts_equal_the_dense_model(family, options):
    dense, inputs = make(family), inputs_for(family, (1, 1), padding="left")
    torch.manual_seed(3)
    before = dense.generate(**inputs, max_new_tokens=5, min_new_tokens=5, **options)
    sparse = upcycle(dense)
    torch.manual_seed(3)
    assert torch.equal(sparse.generate(**inputs, max_new_tokens=5, min_new_tokens=5, **options), before)


@several_families
@pytest.mark.parametrize("images", [(1, 0), (0, 0)])
def test_input_embeddings_are_as_good_as_ids(family, images):
    if family in ("idefics3", "gemma3") and sum(images):
        pytest.skip("the dense model takes pictures with ids only, or replaces ids before it embeds them")
    sparse, inputs = make_sparse(family), inputs_for(family, images)
    with torch.no_grad():
        expected = sparse(**inputs, output_router_logits=True)
        if "image_grid_thw" in inputs:  # the positions of Qwen's pictures come from the ids
            given = ("input_ids", "image_grid_thw", "video_grid_thw", "attention_mask", "mm_token_type_ids")
            inputs["position_ids"] = sparse.model.compute_3d_position_ids(
                **{name: inputs.get(name) for name in given}, inputs_embeds=None, past_key_values=None
            )
        embeds = sparse.get_input_embeddings()(inputs.pop("input_ids"))
        out = sparse(**inputs, inputs_embeds=embeds, output_router_logits=True)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(out.logits[real], expected.logits[real], atol=1e-5, rtol=1e-4)
    assert torch.equal(out.records[0].modality.is_image_T, expected.records[0].modality.is_image_T)


def gradients(model: PreTrainedModel, *batches: dict) -> dict[str, torch.Tensor]:
    """Of the sum of the losses: all forwards first, then one backward."""
    model.zero_grad()
    sum(model(**batch, labels=batch["input_ids"]).loss for batch in batches).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@several_families
@pytest.mark.parametrize("router_gradient", ["chosen", "all"])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_of_both_kinds_gives_the_same_gradients(family, use_reentrant, router_gradient, caplog):
    sparse = make_sparse(family, aux_losses={"balance": 0.5}, router_gradient=router_gradient).train()
    batches = inputs_for(family, (1, 0)), inputs_for(family, (0, 2), text=7)  # two forwards before one backward
    expected = gradients(sparse, *batches)
    sparse.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    assert ("use_reentrant=True is taken as False" in caplog.text) == use_reentrant
    found = gradients(sparse, *batches)
    assert found.keys() == expected.keys() and any(".router." in name for name in found)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-4, msg=name)


@several_families
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_close_to_float32(family, dtype):
    sparse, inputs = upcycle(make(family)), inputs_for(family)  # equal experts: the last bit must not choose another one
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        expected = sparse(**inputs).logits[real]
        sparse.to(dtype)
        half = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
        out = sparse(**half, output_router_logits=True)
    assert out.logits.dtype == dtype and out.router_logits[0].dtype == torch.float32
    torch.testing.assert_close(out.logits[real].float(), expected, atol=0.1 * expected.abs().max().item(), rtol=0)


@slow
@pytest.mark.parametrize("family", ["llava", "idefics3", "qwen2.5-vl", "gemma3"])
def test_a_compiled_forward_equals_the_plain_one(family):
    sparse, inputs = make_sparse(family), inputs_for(family)
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        expected = sparse(**inputs).logits[real]
        torch._dynamo.reset()
        # Inductor takes long, so one family has to do; torch 2.9's writes C++ that does not compile.
        inductor = family == "llava" and hasattr(torch.nn.functional, "grouped_mm")
        compiled = torch.compile(sparse, backend="inductor" if inductor else "aot_eager")
        torch.testing.assert_close(compiled(**inputs).logits[real], expected, atol=1e-5, rtol=1e-4)
        other = inputs_for(family, (0, 1), text=8)
        other_real = other["attention_mask"].bool()
        torch.testing.assert_close(compiled(**other).logits[other_real], sparse(**other).logits[other_real], atol=1e-5, rtol=1e-4)


@several_families
@pytest.mark.parametrize("router", ["dtr", "linear"])
def test_weights_offloaded_to_disk(family, router, tmp_path):
    if family == "idefics3":
        pytest.skip("the dense model cannot be offloaded either: it compares numbers of image tokens that have no data")
    sparse, inputs = make_sparse(family, router=router, shared_expert=True, moe_layers="all"), inputs_for(family)
    sparse.save_pretrained(tmp_path / "model")
    offloaded = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "model",
        device_map="auto",
        max_memory={"cpu": int(0.7 * sparse.get_memory_footprint())},
        offload_folder=tmp_path / "offload",
    ).eval()
    assert "disk" in set(offloaded.hf_device_map.values())
    assert any(p.is_meta for block in offloaded.moe_blocks.values() for p in block.parameters())
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        torch.testing.assert_close(offloaded(**inputs).logits[real], sparse(**inputs).logits[real], atol=1e-5, rtol=1e-4)
    if family == "llava":  # its parts lie on several devices, so no input is on the wrong one
        words = inputs_for(family, (0, 0))
        embeds = sparse.get_input_embeddings()(words.pop("input_ids")).detach()
        with pytest.raises(ValueError, match=r"inputs_embeds is torch.float64, the model torch.float32; pass inputs.to\("):
            offloaded(**words, inputs_embeds=embeds.double())


TARGETS = {
    "attention": r".*(q_proj|v_proj)",
    "experts": r".*\.experts\.\d+\.(gate_proj|up_proj|down_proj|fc1|fc2)",
}


@several_families
@pytest.mark.parametrize("what", TARGETS)
def test_lora_trains_merges_and_unloads(family, what, tmp_path):
    sparse, inputs = make_sparse(family).train(), inputs_for(family)
    before = {name: p.clone() for name, p in sparse.state_dict().items()}
    config = peft.LoraConfig(r=2, target_modules=TARGETS[what], modules_to_save=["router"], lora_dropout=0.0)
    adapted = peft.get_peft_model(sparse, config)
    trainable = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert any("lora_" in name for name in trainable) and any("router" in name for name in trainable)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        adapted(**inputs, labels=inputs["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.eval()
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        expected = adapted(**inputs).logits[real]
    adapted.save_pretrained(tmp_path)
    merged = adapted.merge_and_unload()
    assert type(merged) is type(sparse)
    with torch.no_grad():
        torch.testing.assert_close(merged(**inputs).logits[real], expected, atol=1e-5, rtol=1e-4)
    after = merged.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert after.keys() == before.keys() and any(".router." in name for name in changed)
    assert any((".experts." if what == "experts" else "attn") in name for name in changed)
    loaded = peft.PeftModel.from_pretrained(upcycle(make(family), **NOISE), tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits[real], expected, atol=1e-5, rtol=1e-4)


@several_families
def test_int8_weights(family):
    sparse, inputs = upcycle(make(family)), inputs_for(family)  # equal experts: rounding must not choose another one
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        expected = sparse(**inputs).logits[real]
        quantize_(sparse, Int8WeightOnlyConfig())
        found = sparse(**inputs).logits[real]
    experts = [
        m.weight for b in sparse.moe_blocks.values() for e in b.experts for m in e.modules() if isinstance(m, torch.nn.Linear)
    ]
    assert all(type(weight).__name__ != "Parameter" for weight in experts)
    assert 0 < (found - expected).abs().max() < 0.1 * expected.abs().max()


@several_families
def test_copies_and_pickles_are_the_model(family):
    sparse, inputs = make_sparse(family), inputs_for(family)
    pickle.dumps(sparse)
    with torch.no_grad():
        sparse(**inputs, output_hidden_states=True)
        pickled = pickle.dumps(sparse)  # after a forward, when transformers has set hooks that do not pickle
        out = sparse(**inputs, output_hidden_states=True)
        expected, layers = out.logits, len(out.hidden_states)
        assert layers > len(sparse.moe_blocks)
        for twin in (pickle.loads(pickled), copy.deepcopy(sparse)):
            assert type(twin) is type(sparse) and twin.config.moe == sparse.config.moe
            again = twin(**inputs, output_hidden_states=True)
            torch.testing.assert_close(again.logits, expected, atol=1e-6, rtol=0)
            assert len(again.hidden_states) == layers
            next(twin.parameters()).data.add_(1.0)
        torch.testing.assert_close(sparse(**inputs).logits, expected, atol=1e-6, rtol=0)


class Conversations(torch.utils.data.Dataset):
    """Eight batches of one picture and some words."""

    def __init__(self, family: str) -> None:
        self.items = [inputs_for(family, (1,), text=5 + i) for i in range(8)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.items[index] | {"labels": self.items[index]["input_ids"]}


def train(family: str, stage: int, folder: Path, resume: bool) -> dict[str, torch.Tensor]:
    """Trains four steps with a checkpoint after two, or the last two from that checkpoint; returns all that was trained."""
    model = make(family) if stage == 2 else make_sparse(family)
    set_trainable(model, "ffn" if stage == 2 else "router", [0, 2])
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=4, save_steps=2, per_device_train_batch_size=1, learning_rate=1e-2, report_to="none",
        use_cpu=True, disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    trainer = EvoMoETrainer(
        model=model, args=arguments, train_dataset=Conversations(family), data_collator=lambda items: items[0],
        evolution=EvolutionCallback(EvolutionOptions(), [0, 2], folder / "start.safetensors") if stage == 2 else None,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2") if resume else None)
    evolved = trainer.evolved.expert_tensors() if stage == 2 else {}
    return evolved | {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@slow
@pytest.mark.parametrize("family", ["llava-phi", "idefics3", "qwen2.5-vl", "gemma3"])
@pytest.mark.parametrize("stage", [2, 3])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(family, stage, tmp_path):
    whole = train(family, stage, tmp_path, resume=False)
    shutil.rmtree(tmp_path / "checkpoint-4")
    resumed = train(family, stage, tmp_path, resume=True)
    assert whole.keys() == resumed.keys() and whole
    for name in whole:
        torch.testing.assert_close(resumed[name], whole[name], atol=1e-7, rtol=0, msg=name)
