"""The router's gradient from all experts on two processes (gloo, CPU) is that of one: replicated (DDP) and sharded (FSDP2)."""

import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from tiny import inputs_for, make_llava
from torch import multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from evomoe import upcycle
from evomoe.model.structure import decoder_layers
from evomoe.training.trainable import set_trainable


def make_model() -> torch.nn.Module:
    torch.manual_seed(0)
    model = upcycle(make_llava(), router="dtr", expert_init="noise", init_options={"std": 0.3}, aux_losses={})
    set_trainable(model, "router", model.config.moe.moe_layers)
    return model.train()


def batch(rank: int | None = None) -> dict[str, torch.Tensor]:
    inputs = inputs_for("llava", (1, 1))
    inputs["labels"] = inputs["input_ids"]
    return inputs if rank is None else {name: value.chunk(2)[rank] for name, value in inputs.items()}


def router_gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    def whole(gradient) -> torch.Tensor:
        return gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient

    named = model.named_parameters()
    return {name.removeprefix("module."): whole(p.grad).clone() for name, p in named if p.grad is not None}


def worker(rank: int, kind: str, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", timedelta(minutes=3), rank=rank, world_size=2)
    model = make_model()
    if kind == "fsdp2":
        from torch.distributed.fsdp import fully_shard

        mesh = torch.distributed.init_device_mesh("cpu", (2,))
        for layer in decoder_layers(model):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    else:
        model = DistributedDataParallel(model)
    model(**batch(rank)).loss.backward()
    torch.save(router_gradients(model), Path(folder) / f"{kind}{rank}.pt")
    del model
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_have_the_gradients_of_one(kind, tmp_path):
    model = make_model()
    model(**batch()).loss.backward()
    expected = router_gradients(model)
    assert expected and all("router" in name for name in expected)
    mp.spawn(worker, (kind, str(tmp_path)), nprocs=2)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{kind}{rank}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            tolerance = 1e-5 * gradient.abs().max().item()
            torch.testing.assert_close(found[name], gradient, atol=tolerance, rtol=1e-4, msg=name)
