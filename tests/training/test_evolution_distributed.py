"""Expert evolution on two processes (gloo, CPU) gives what one process gives: replicated (DDP) and sharded (FSDP2)."""

import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from evomoe.recipe.options import EvolutionOptions
from evomoe.training.collapse import StartOfStage2, relative_distances
from evomoe.training.evolution import ExpertEvolution

STEPS = 4
OPTIONS = EvolutionOptions("scaled_update", seed=5)


def make_ffn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 7), nn.SiLU(), nn.Linear(7, 6))  # 7 rows do not divide evenly


def batch(step: int, rank: int, world: int) -> torch.Tensor:
    whole = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
    return whole.chunk(world)[rank]


def train(model: nn.Module, evolution: ExpertEvolution, steps: range, rank: int = 0, world: int = 1) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in steps:
        evolution.before_step()
        optimizer.zero_grad()
        model(batch(step, rank, world)).square().mean().backward()
        optimizer.step()
        evolution.after_step()


def start_of(evolution: ExpertEvolution, folder: str | Path, rank: int) -> StartOfStage2:
    start = StartOfStage2(Path(folder) / "start.safetensors")
    start.write(evolution, write=rank == 0)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    return start


def worker(rank: int, kind: str, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"  # no port that another program could take meanwhile
    torch.distributed.init_process_group("gloo", meeting, timedelta(minutes=3), rank=rank, world_size=2)
    ffn = make_ffn()
    if kind == "fsdp2":
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor.debug import CommDebugMode

        model = fully_shard(ffn, mesh=torch.distributed.init_device_mesh("cpu", (2,)))
        evolution = ExpertEvolution({0: model}, OPTIONS, STEPS)
        start = start_of(evolution, folder, rank)
        train(model, evolution, range(2), rank, 2)
        evolution.save(folder, write=rank == 0)
        torch.distributed.barrier()
        with CommDebugMode() as communication:
            silent = ExpertEvolution({0: model}, OPTIONS, STEPS)
            silent.before_step()
            silent.after_step()
        assert communication.get_total_counts() == 0
        resumed = ExpertEvolution({0: model}, OPTIONS, STEPS)
        resumed.load(folder)
        evolution = resumed
        train(model, evolution, range(2, STEPS), rank, 2)
    else:
        model = DistributedDataParallel(ffn)
        evolution = ExpertEvolution({0: ffn}, OPTIONS, STEPS)
        start = start_of(evolution, folder, rank)
        train(model, evolution, range(STEPS), rank, 2)
    tensors, distances = evolution.expert_tensors(), relative_distances(evolution, start)
    torch.save({"tensors": tensors, "distances": distances}, Path(folder) / f"{kind}{rank}.pt")
    # The wrapped model first: as the last owner of the process group it would wait, with Python's lock, for threads that want it.
    del model, evolution
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_evolve_the_experts_of_one(kind, tmp_path):
    ffn = make_ffn()
    evolution = ExpertEvolution({0: ffn}, OPTIONS, STEPS)
    start = start_of(evolution, tmp_path / "one", 0)
    train(ffn, evolution, range(STEPS))
    mp.spawn(worker, (kind, str(tmp_path)), nprocs=2)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{kind}{rank}.pt", weights_only=True)
        for name, tensor in evolution.expert_tensors().items():
            torch.testing.assert_close(found["tensors"][name], tensor, atol=1e-6, rtol=1e-5)
        expected = [by_layer[0] for by_layer in relative_distances(evolution, start)]
        assert [by_layer[0] for by_layer in found["distances"]] == pytest.approx(expected, rel=1e-4)
