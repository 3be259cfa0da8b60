"""How different the evolved experts are from expert 1, and whether they collapsed."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from evomoe.model.sparse_model import SparseModel
from evomoe.support.files import write_tensors
from evomoe.training import sharding
from evomoe.training.evolution import ExpertEvolution

logger = logging.getLogger(__name__)

COLLAPSED = 1e-3
"""Experts nearer to expert 1 than this share of the way that expert 1 went in Stage II count as copies of it."""


class StartOfStage2:
    """theta_1 as Stage II found it. It lies on the disk and is read parameter by parameter, so that no memory holds it.

    Args:
        path: of its file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, evolution: ExpertEvolution, write: bool = True) -> None:
        """Keeps theta_1 as it is now; every process must call, those with ``write`` write."""
        values = zip(evolution.names, evolution.local_values(), evolution.parameters(), strict=True)
        tensors = {self._name(*name): sharding.whole(value, parameter) for name, value, parameter in values}
        if write:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(self.path, tensors)

    def local_values(self, evolution: ExpertEvolution) -> Iterable[Tensor]:
        """This process's part of each parameter, in the order of the evolution's names; every process must call.

        Raises:
            ValueError: the file is not there.
        """
        if not self.path.is_file():
            raise ValueError(f"{self.path} is not there: begin Stage II anew, without `resume`, in another output folder.")
        with safe_open(self.path, framework="pt") as file:
            for name, parameter in zip(evolution.names, evolution.parameters(), strict=True):
                yield sharding.scatter(file.get_tensor(self._name(*name)), parameter)

    @staticmethod
    def _name(layer: int, name: str) -> str:
        return f"layers.{layer}.{name}"


@torch.no_grad()
def relative_distances(evolution: ExpertEvolution, start: StartOfStage2) -> list[dict[int, float]]:
    """For each evolved expert and layer, ``|theta_n - theta_1| / |theta_1 - theta_1 at the start of Stage II|``.

    0 for a copy of expert 1; 1 for an expert as far from expert 1 as Stage I is, for example one that never moved.
    """
    moved = _distances(evolution, start.local_values(evolution))
    return [
        {layer: distance / moved[layer] if moved[layer] else 0.0 for layer, distance in _distances(evolution, shadow).items()}
        for shadow in evolution.shadows
    ]


def _distances(evolution: ExpertEvolution, others: Iterable[Tensor]) -> dict[int, float]:
    """The distance of theta_1 from other weights, by layer."""
    squares: dict[int, Tensor] = {}
    for (layer, _), theta1, other in zip(evolution.names, evolution.local_values(), others, strict=True):
        apart = theta1.float() - other.to(theta1.device).float()
        squares[layer] = squares.get(layer, torch.zeros((), device=theta1.device)) + apart.square().sum()
    stacked_L = torch.stack(list(squares.values()))
    if evolution.is_sharded() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(stacked_L)
    return dict(zip(squares, stacked_L.sqrt().tolist(), strict=True))


def diversity_report(evolution: ExpertEvolution, start: StartOfStage2) -> dict[str, Any]:
    """What Stage II leaves behind: relative distances by expert and layer, and which experts collapsed."""
    by_expert = relative_distances(evolution, start)
    mean = {f"expert{n}": sum(layers.values()) / len(layers) for n, layers in enumerate(by_expert, start=2)}
    return {
        "rule": evolution.config.rule,
        "stop_fraction": evolution.config.stop_fraction,
        "relative_distance": mean,
        "by_layer": {
            f"expert{n}": {str(layer): value for layer, value in layers.items()} for n, layers in enumerate(by_expert, start=2)
        },
        "collapsed": [name for name, value in mean.items() if value < COLLAPSED],
    }


def check_not_collapsed(report: dict[str, Any], schedule: str) -> None:
    """Refuses experts that are all alike.

    Raises:
        ValueError: every evolved expert is a copy of expert 1: the router would get no gradient from the language loss.
    """
    if len(report["collapsed"]) < len(report["relative_distance"]):
        return
    raise ValueError(
        f"All evolved experts are copies of expert 1 (largest relative distance "
        f"{max(report['relative_distance'].values()):.1e}). Rule '{report['rule']}' with stop_fraction {report['stop_fraction']} "
        f"under a {schedule} learning rate lets them catch up. The language loss would give the router no gradient. Use rule "
        "'scaled_update', or 'ema' with a stop_fraction below 1; `allow_collapsed_experts=True` goes on all the same."
    )


@torch.no_grad()
def check_experts_differ(model: SparseModel, expert_init: str) -> None:
    """Refuses a sparse model all of whose experts are equal, wherever they came from.

    Raises:
        ValueError: only the router would train, and it would get no gradient that tells the experts apart.
    """
    groups = _equal_experts(model)
    if len(groups) > 1:
        for group in groups:
            if len(group) > 1:
                numbers = ", ".join(str(number + 1) for number in group)
                logger.warning("Experts %s are equal to one another in every layer: the router cannot tell them apart.", numbers)
        return
    raise ValueError(
        f"All experts are equal (expert_init '{expert_init}'), and only the router would train: it could not tell them apart. "
        "Start from evolved experts, from expert_init noise or drop_upcycling, or train the experts too: "
        "`stage3.train=router+experts`. `allow_collapsed_experts=True` goes on all the same."
    )


def _equal_experts(model: SparseModel) -> list[list[int]]:
    """The experts in groups that are equal in every layer; an expert that is like no other is a group of its own."""
    blocks = [*model.moe_blocks.values()]

    def equal(one: int, other: int) -> bool:
        pairs = ((block.experts.weights(one), block.experts.weights(other)) for block in blocks)
        return all(torch.equal(mine[name], theirs[name]) for mine, theirs in pairs for name in mine)

    groups: dict[tuple[float, ...], list[list[int]]] = {}
    for number in range(len(blocks[0].experts)):
        sums = tuple(weight.sum(dtype=torch.float64).item() for weight in blocks[0].experts.weights(number).values())
        alike = groups.setdefault(sums, [])  # experts of other sums are not equal
        for group in alike:
            if equal(group[0], number):
                group.append(number)
                break
        else:
            alike.append([number])
    return [group for alike in groups.values() for group in alike]
