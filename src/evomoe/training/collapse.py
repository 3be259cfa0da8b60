"""How different the evolved experts are from expert 1, and whether they collapsed."""

from collections.abc import Sequence
from typing import Any

import torch

from evomoe.model.sparse_model import SparseModel
from evomoe.training.evolution import ExpertEvolution

COLLAPSED = 1e-3
"""Experts nearer to expert 1 than this share of the way that expert 1 went in Stage II count as copies of it."""


@torch.no_grad()
def relative_distances(evolution: ExpertEvolution) -> list[dict[int, float]]:
    """For each evolved expert and layer, ``|theta_n - theta_1| / |theta_1 - theta_1 at the start of Stage II|``.

    0 for a copy of expert 1; 1 for an expert as far from expert 1 as Stage I is, for example one that never moved.
    """
    theta1 = [t.to(s.device) for t, s in zip(evolution.local_values(), evolution.stage1, strict=True)]
    moved = _norms(evolution, torch._foreach_sub(theta1, evolution.stage1))
    distances = []
    for shadow in evolution.shadows:
        apart = _norms(evolution, torch._foreach_sub(shadow, theta1))
        distances.append({layer: apart[layer] / moved[layer] if moved[layer] else 0.0 for layer in apart})
    return distances


def _norms(evolution: ExpertEvolution, tensors: Sequence[torch.Tensor]) -> dict[int, float]:
    squares: dict[int, torch.Tensor] = {}
    for (layer, _), tensor in zip(evolution.names, tensors, strict=True):
        squares[layer] = squares.get(layer, torch.zeros((), device=tensor.device)) + tensor.square().sum()
    stacked_L = torch.stack(list(squares.values()))
    if evolution.is_sharded() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(stacked_L)
    return dict(zip(squares, stacked_L.sqrt().tolist(), strict=True))


def diversity_report(evolution: ExpertEvolution) -> dict[str, Any]:
    """What Stage II leaves behind: relative distances by expert and layer, and which experts collapsed."""
    by_expert = relative_distances(evolution)
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
        f"{max(report['relative_distance'].values()):.1e}): rule '{report['rule']}' with stop_fraction {report['stop_fraction']} "
        f"under a {schedule} learning rate lets them catch up. The language loss would give the router no gradient. Use rule "
        "'scaled_update', or 'ema' with a stop_fraction below 1; `allow_collapsed_experts=True` goes on all the same."
    )


@torch.no_grad()
def check_experts_differ(model: SparseModel, expert_init: str) -> None:
    """Refuses a sparse model all of whose experts are equal, wherever they came from.

    Raises:
        ValueError: only the router would train, and it would get no gradient that tells the experts apart.
    """
    for block in model.moe_blocks.values():
        first = block.experts.weights(0)
        for number in range(1, len(block.experts)):
            other = block.experts.weights(number)
            if any(not torch.equal(first[name], other[name]) for name in first):
                return
    raise ValueError(
        f"All experts are equal (expert_init '{expert_init}'), and only the router would train: it could not tell them apart. "
        "Start from evolved experts, from expert_init noise or drop_upcycling, or train the experts too: "
        "`stage3.train=router+experts`. `allow_collapsed_experts=True` goes on all the same."
    )
