"""A weight that ZeRO-3 shares out: each process's part is as large as any, and what pads the last ones is never taken for weights."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from evomoe.training import sharding


@pytest.fixture(params=[(1, (3,)), (2, (7, 3)), (3, (2, 2)), (4, (1,)), (4, (5,)), (4, (2, 4))], ids=str)
def shared_out(request, monkeypatch):
    """The whole weight, its parameter as each process has it, and what lets code run as one of the processes."""
    processes, shape = request.param
    tensor = torch.arange(1.0, 1 + math.prod(shape)).view(shape)
    size = -(-tensor.numel() // processes)
    padded = torch.full((size * processes,), math.nan)
    padded[: tensor.numel()] = tensor.flatten()
    parameters: list[Any] = [
        SimpleNamespace(
            ds_tensor=part, ds_numel=tensor.numel(), ds_shape=tensor.shape, ds_process_group=None, device=tensor.device
        )
        for part in padded.chunk(processes)
    ]

    def act_as(process: int) -> None:
        monkeypatch.setattr(torch.distributed, "get_rank", lambda group: process)

    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: processes)
    return tensor, parameters, act_as


def test_the_parts_make_the_whole_without_padding(shared_out):
    tensor, parameters, act_as = shared_out
    parts = []
    for process, parameter in enumerate(parameters):
        act_as(process)
        assert sharding.is_sharded(parameter)
        parts.append(sharding.local(parameter))
        assert torch.equal(sharding.scatter(tensor, parameter), parts[-1]), "what is handed out is not what is held"
    assert torch.equal(torch.cat(parts), tensor.flatten())


def test_the_whole_is_put_together_from_parts_of_which_some_are_short(shared_out, monkeypatch):
    tensor, parameters, act_as = shared_out
    sent: list[torch.Tensor] = []

    def all_gather(parts: list[torch.Tensor], own: torch.Tensor, group: object) -> None:
        sent.append(own.clone())
        for part, other in zip(parts, sent, strict=False):
            part.copy_(other)

    monkeypatch.setattr(torch.distributed, "all_gather", all_gather)
    for process, parameter in enumerate(parameters):
        act_as(process)
        found = sharding.whole(sharding.local(parameter) * 2, parameter)
    assert torch.equal(found, tensor * 2) and len({len(one) for one in sent}) == 1
