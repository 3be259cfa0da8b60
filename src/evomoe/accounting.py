"""How many parameters a model has, runs per token, and trains: for a model with or without weights.

Implements: Table 8 (parameter counts).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from evomoe.modeling import EvoMoEBlock


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters: of the whole model, used for one token, of the routers, and trained.

    One token runs K of E experts per MoE layer, and all else. Of the routers' two hypernetworks a token uses one, but both
    count as activated, as they do in the paper's Table 1.
    """

    total: int
    activated: int
    router: int
    trained: int


def count_parameters(model: nn.Module, trained: Iterable[str] | None = None) -> ParameterCounts:
    """Counts a model's parameters; ``trained`` names those that train (default: those that require gradients)."""
    parameters = dict(model.named_parameters())  # tied parameters appear once
    total = sum(p.numel() for p in parameters.values())
    blocks = [module for module in model.modules() if isinstance(module, EvoMoEBlock)]
    idle = sum(
        (block.moe.num_experts - block.moe.num_experts_per_tok) * sum(p.numel() for p in block.experts[0].parameters())
        for block in blocks
    )
    router = sum(p.numel() for block in blocks for p in block.router.parameters())
    names = [name for name, p in parameters.items() if p.requires_grad] if trained is None else trained
    return ParameterCounts(total, total - idle, router, sum(parameters[name].numel() for name in names))


def parameter_facts(counts: ParameterCounts) -> list[tuple[str, str]]:
    """Rows for a model card."""
    return [
        ("parameters", f"{readable(counts.total)}, of which {readable(counts.activated)} run per token"),
        ("router parameters", readable(counts.router)),
    ]


def large_router(model: nn.Module) -> str:
    """A warning if a layer's router has more parameters than one of its experts; empty if not."""
    blocks = (module for module in model.modules() if isinstance(module, EvoMoEBlock))
    for block in blocks:
        router, expert = (sum(p.numel() for p in part.parameters()) for part in (block.router, block.experts[0]))
        if router > expert:
            smaller = "; smaller: --router-options hypernet_width=16 rank=4" if block.moe.router.startswith("dtr") else ""
            return f"Warning: the router of layer {block.layer} has {readable(router)} parameters, its FFN {readable(expert)}{smaller}"
    return ""


def readable(count: int) -> str:
    """1234567 -> '1.23 M'."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return str(count)
