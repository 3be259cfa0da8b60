"""Two processes (gloo, CPU) that share a batch: auxiliary losses, their gradients and the counts are those of one process."""

import json
import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from tiny import inputs_for, make_llava
from torch import multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from evomoe import upcycle
from evomoe.model.aux_losses import AUX_LOSSES
from evomoe.training.meter import RouterMeter
from evomoe.training.trainable import set_trainable

ROUTERS = {
    "dtr": {"aux_losses": {"balance": 1.0, "z": 0.1, "local": 1.0}},
    "anyexperts": {"aux_losses": {"balance": 1.0, "importance": 1.0, "budget": 1.0}, "num_experts_per_tok": 2},
}
OF_ONE_PROCESS = {"contrastive"}
"""Its outputs are those of a few tokens, which each process takes of its own."""


def make_model(router: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = upcycle(make_llava(), router=router, expert_init="noise", init_options={"std": 0.3}, **ROUTERS[router])
    set_trainable(model, "router", model.config.moe.moe_layers)
    return model.train()


def batch(rank: int | None = None) -> dict[str, torch.Tensor]:
    """Two rows that differ in their number of words; one of them has a picture."""
    inputs = inputs_for("llava", (1, 0), text=9)
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    if rank is None:
        return inputs
    return {
        name: value if name == "pixel_values" else value.chunk(2)[rank]
        for name, value in inputs.items()
        if rank == 0 or name != "pixel_values"
    }


def losses_and_gradients(model: torch.nn.Module, rank: int | None) -> tuple[dict, dict]:
    """As the Trainer trains: every process divides by the labels of all, and multiplies by the number of processes."""
    items, meter = (batch()["labels"][:, 1:] != -100).sum(), RouterMeter()
    out = model(**batch(rank), num_items_in_batch=items, output_router_logits=True)
    (out.loss * (1 if rank is None else 2)).backward()
    meter.update(out)
    own = {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.grad is not None}
    return meter.drain(), own


def worker(rank: int, router: str, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", timedelta(minutes=2), rank=rank, world_size=2)
    model = DistributedDataParallel(make_model(router))
    drained, gradients = losses_and_gradients(model, rank)
    Path(folder, f"{rank}.json").write_text(json.dumps(drained))
    torch.save(gradients, Path(folder) / f"{rank}.pt")
    del model, gradients  # the group's threads wait for Python where a model that holds them goes after it
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("router", ROUTERS)
def test_two_processes_have_the_losses_gradients_and_counts_of_one(router, tmp_path):
    expected, gradients = losses_and_gradients(make_model(router), None)
    mp.spawn(worker, (router, str(tmp_path)), nprocs=2)
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx(expected, rel=1e-5)
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-5 * gradient.abs().max().item(), rtol=1e-4, msg=name)


def test_every_loss_is_tried_here():
    assert {name for fields in ROUTERS.values() for name in fields["aux_losses"]} == AUX_LOSSES.keys() - OF_ONE_PROCESS
