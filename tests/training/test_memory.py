"""What a stage needs of memory, said beforehand, against what the process then takes."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import measured_peak
import pytest
import torch
from measured_peak import MOE_LAYERS, arguments_of, batch_of, model_of
from small_runs import make_recipe
from tiny import FAMILIES, inputs_for, make, make_llava
from tiny.router_options import ROUTER_OPTIONS
from transformers import Trainer

from evomoe import ROUTERS, upcycle
from evomoe.conversion.upcycled_folder import upcycle_folder
from evomoe.data.labels import IGNORED
from evomoe.model.loading import load_model
from evomoe.model.structure import decoder_layers
from evomoe.support.device import moved
from evomoe.training.checked_run import check_run, load_data
from evomoe.training.memory import StageMemory, largest_batch, set_precision, stage_memory
from evomoe.training.trainable import set_trainable

TESTS = Path(__file__).parents[1]


def estimated(name, trained, options, tmp_path):
    model = moved(model_of(name, trained), "meta")
    evolved = sum(p.numel() for layer in MOE_LAYERS for p in decoder_layers(model)[layer].mlp.parameters()) * 3 * 4
    arguments = arguments_of(options, str(tmp_path))
    set_trainable(model, trained, MOE_LAYERS)
    return stage_memory(model, batch_of(name), arguments, evolved if trained == "ffn" else 0)


def measured(name, trained, options) -> int:
    paths = os.pathsep.join([str(TESTS), str(Path(__file__).parent), *sys.path])
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    program = [sys.executable, measured_peak.__file__, name, trained, json.dumps(options)]
    found = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
    return int(found.stdout.splitlines()[-1])


RECOMPUTED = {"gradient_checkpointing": True, "gradient_accumulation_steps": 2}
QUICK = [("llava", "ffn", {}), ("qwen2-vl", "router", {})]
ALL = [
    (name, trained, options)
    for name in ("llava", "tied", "qwen2-vl")
    for trained, options in (("text+projector", {}), ("ffn", {}), ("router", {}), ("text+projector", RECOMPUTED))
]


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize(
    ("name", "trained", "options"), [pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow) for case in ALL]
)
def test_the_peak_is_within_15_percent_of_what_the_process_takes(name, trained, options, tmp_path):
    said, taken = estimated(name, trained, options, tmp_path), measured(name, trained, options)
    print(f"{name} {trained} {options}: said {said.peak / 1e6:.0f} MB, taken {taken / 1e6:.0f} MB, {said.peak / taken:.3f}")
    assert said.peak == pytest.approx(taken, rel=0.15)


STAGES = {"text+projector": 1, "ffn": 2, "router": 3}


def one_batch(model) -> dict[str, torch.Tensor]:
    batch = inputs_for(model)
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
    return batch


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_an_estimate_in_every_stage(name, tmp_path):
    model = make(name)
    batch, layers = one_batch(model), [0, 2]
    sparse = upcycle(make(name), moe_layers=layers, expert_init="noise", router="linear")
    for trained, stage in STAGES.items():
        of_stage = moved(sparse if stage == 3 else model, "meta")
        of_stage.tie_weights()
        set_trainable(of_stage, trained, layers)
        need = stage_memory(of_stage, batch, arguments_of({}, str(tmp_path)))
        sizes = {name: p.nbytes for name, p in of_stage.named_parameters()}
        assert need.weights >= sum(sizes.values())  # buffers besides
        assert need.gradients == sum(sizes[name] for name, p in of_stage.named_parameters() if p.requires_grad)
        assert 0 < need.activations < need.peak <= sum((need.weights, need.gradients, need.optimizer, need.activations)) * 2


@pytest.mark.parametrize("router", ROUTERS)
def test_every_router_has_an_estimate(router, tmp_path):
    model = upcycle(make_llava(), router=router, **ROUTER_OPTIONS.get(router, {}), expert_init="noise")
    batch, arguments = one_batch(model), arguments_of({}, str(tmp_path))
    trained = "experts" if router == "fixed" else "router+experts"  # which has no parameters
    set_trainable(model, trained, model.config.moe.moe_layers)
    need = stage_memory(moved(model, "meta"), batch, arguments)
    assert need.peak > need.weights + need.gradients


def test_the_model_stays_as_it_is_and_longer_rows_take_more(tmp_path):
    model = moved(make_llava(), "meta")
    set_trainable(model, "ffn", [0, 2])
    before = {name: (p.device, p.requires_grad) for name, p in model.named_parameters()}
    batch = one_batch(model)
    double = {name: torch.cat([tensor, tensor]) for name, tensor in batch.items()}
    one, two = (stage_memory(model, b, arguments_of({}, str(tmp_path))) for b in (batch, double))
    assert two.activations == pytest.approx(2 * one.activations, rel=0.01) and (two.weights, two.optimizer) == (
        one.weights,
        one.optimizer,
    )
    assert before == {name: (p.device, p.requires_grad) for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("options", "per_weight"), [({}, 8), ({"optim": "sgd"}, 0), ({"optim": "sgd", "optim_args": "momentum=0.9"}, 4)]
)
def test_the_optimizer_s_states_are_its_own(options, per_weight, tmp_path):
    model = moved(make_llava(), "meta")
    set_trainable(model, "text", [0])
    need = stage_memory(model, one_batch(make_llava()), arguments_of(options, str(tmp_path)))
    assert need.optimizer == pytest.approx(per_weight * need.gradients / 4, rel=0.01)


def test_processes_share_the_model_out_in_their_way(tmp_path):
    need = StageMemory(weights=800, gradients=400, optimizer=800, evolved=1200, activations=500, peak=3600)
    plain = arguments_of({}, str(tmp_path))
    assert need.shared_out(plain, 1, 10) == need
    ddp = need.shared_out(plain, 4, 10)
    assert (ddp.gradients, ddp.weights, ddp.peak) == (800, 800, 4000)
    plain.fsdp = True
    fsdp = need.shared_out(plain, 4, 10)
    assert (fsdp.weights, fsdp.gradients, fsdp.optimizer, fsdp.evolved) == (200, 100, 200, 300) and fsdp.peak == 800 + 400 + 20
    plain.fsdp, plain.deepspeed = None, "zero2.json"
    zero2 = need.shared_out(plain, 4, 10)
    assert (zero2.weights, zero2.gradients, zero2.optimizer, zero2.evolved) == (800, 100, 200, 1200)
    assert zero2.peak == 2300 + 400
    settings = {"zero_optimization.stage": 3, "zero_optimization.stage3_max_live_parameters": 30}
    plain.hf_deepspeed_config = SimpleNamespace(get_value=lambda name, default=None: settings.get(name, default))
    zero3 = need.shared_out(plain, 4, 10)
    assert (zero3.weights, zero3.gradients, zero3.optimizer, zero3.evolved) == (200, 100, 200, 300)
    assert zero3.peak == 800 + 400 + 4 * 30


def test_the_largest_batch_is_of_the_longest_records(workspace):
    run = check_run(make_recipe(workspace))
    dataset = load_data(run.recipe, run.processor)[2]
    longest = sorted(dataset.lengths())[-4:]
    batch = largest_batch(dataset, 4, packing=False)
    assert batch["input_ids"].shape == (4, longest[-1]) and batch["attention_mask"].sum(-1).sort().values.tolist() == longest
    assert (largest_batch(dataset, 4, packing=True)["attention_mask"] != 0).sum() == sum(longest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_has_the_precision_that_loading_gives_it(workspace, dtype):
    run = check_run(make_recipe(workspace))
    upcycle_folder(run.recipe.model, workspace / "sparse", **dataclasses.asdict(run.recipe.moe))
    loaded = load_model(workspace / "sparse", str(dtype).removeprefix("torch."))
    said = run.prepared(3)
    set_precision(said, dtype)
    assert {name: p.dtype for name, p in said.named_parameters()} == {name: p.dtype for name, p in loaded.named_parameters()}


def test_an_optimizer_that_looks_at_contents_is_asked_what_it_keeps_of_others(tmp_path, monkeypatch):
    class Looks(torch.optim.AdamW):
        def step(self):
            assert all(float(p.grad.sum()) == 0 for group in self.param_groups for p in group["params"])
            super().step()

    model, batch, arguments = moved(make_llava(), "meta"), one_batch(make_llava()), arguments_of({}, str(tmp_path))
    set_trainable(model, "text", [0])
    expected = stage_memory(model, batch, arguments)
    monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", lambda *_: (Looks, {"lr": 1e-3}))
    need = stage_memory(model, batch, arguments)
    assert need.optimizer == pytest.approx(expected.optimizer, rel=0.01) and need.peak == pytest.approx(expected.peak, rel=0.05)
