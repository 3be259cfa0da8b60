"""A part that sees pictures has a part in the loss of a batch without any."""

import json
import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from small_runs import changed, make_recipe, under
from tiny import FAMILIES, inputs_for, make, make_records, write_workspace
from two_processes import torchrun

from evomoe.model.structure import decoder_layers
from evomoe.support.errors import OptionError
from evomoe.training.every_part import Looking
from evomoe.training.run import run
from evomoe.training.trainable import set_trainable


def gradients(model, inputs) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**inputs, labels=inputs["input_ids"]).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_all_that_a_picture_trains_is_in_the_graph_of_words_alone(family):
    model = make(family).train()
    set_trainable(model, "text+projector+vision", ())
    with_picture, words = inputs_for(family, (1,)), inputs_for(family, (0, 0))
    _, seen = gradients(model, with_picture)
    loss_before, before = gradients(model, words)
    Looking(model, with_picture)
    loss, after = gradients(model, words)
    assert loss == loss_before
    assert seen.keys() <= after.keys()
    assert all(torch.equal(gradient, before.get(name, torch.zeros_like(gradient))) for name, gradient in after.items())
    model.eval()
    assert not model(**words, labels=words["input_ids"]).loss.isnan()


def without_pictures(record: dict) -> dict:
    turns = [turn | {"value": turn["value"].replace("<image>\n", "")} for turn in record["conversations"]]
    return {"id": record["id"], "conversations": turns}


def test_a_projector_trains_alone_though_batches_have_no_picture(tmp_path):
    records = make_records(8)
    workspace = write_workspace(
        tmp_path, [record if number == 3 else without_pictures(record) for number, record in enumerate(records)]
    )
    recipe = make_recipe(workspace, stages=(0,), steps=8)
    recipe = recipe.but(stage0=replace(recipe.stage0, batch_size=1, accumulation=1))
    assert under(changed(workspace / "model", run(recipe)), "multi_modal_projector")


def test_a_projector_does_not_train_alone_on_words(tmp_path):
    workspace = write_workspace(tmp_path, [without_pictures(record) for record in make_records(8)])
    with pytest.raises(OptionError, match="no record has a picture"):
        run(make_recipe(workspace, stages=(0,)))


@pytest.mark.parametrize("train", ["text+projector", "text+projector+vision"])
def test_two_processes_of_which_one_has_pictures(tmp_path, train):
    """Each batch is one record, half of them have no picture, and layers are recomputed: in DDP each waits for the other's gradients."""
    workspace = write_workspace(tmp_path, [r if n % 2 else without_pictures(r) for n, r in enumerate(make_records(8))])
    options = {"model": workspace / "model", "data": workspace / "data.json", "image-root": workspace / "images", "stages": 1}
    options |= {
        "output": workspace / "run",
        "stage1.train": train,
        "stage1.batch-size": 1,
        "stage1.accumulation": 1,
        "stage1.steps": 4,
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    torchrun(*flags, "--trainer", "gradient_checkpointing=true", "train_sampling_strategy=random")
    logged = [json.loads(line) for line in (workspace / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in logged if "loss" in entry] == [1, 2, 3, 4]


def sharded_worker(rank: int, folder: str) -> None:
    """One process has a picture, the other words alone; all modules are sharded, so that both must run each of them."""
    from torch.distributed.fsdp import fully_shard

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", timedelta(seconds=60), rank=rank, world_size=2)
    torch.manual_seed(0)
    model = make("llava").train()
    set_trainable(model, "text+projector", ())
    picture, words = inputs_for("llava", (1,)), inputs_for("llava", (0,))
    Looking(model, picture)
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    for module in (*decoder_layers(model), model.model.multi_modal_projector, model):
        fully_shard(module, mesh=mesh)
    inputs = words if rank else picture
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    gradient = model.model.multi_modal_projector.linear_1.weight.grad.full_tensor()
    torch.save(gradient, Path(folder) / f"{rank}.pt")
    del model
    torch.distributed.destroy_process_group()


def test_sharded_processes_of_which_one_has_pictures(tmp_path):
    torch.multiprocessing.spawn(sharded_worker, (str(tmp_path),), nprocs=2)
    torch.manual_seed(0)
    model = make("llava").train()
    set_trainable(model, "text+projector", ())
    _, expected = gradients(model, inputs_for("llava", (1,)))
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, expected["model.multi_modal_projector.linear_1.weight"] / 2)
