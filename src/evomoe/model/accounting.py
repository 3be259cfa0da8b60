"""How many parameters a model has, runs per token, and trains: for a model with or without weights.

Implements: Table 8 (parameter counts).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from transformers.modeling_utils import PreTrainedModel

from evomoe.model.block import EvoMoEBlock
from evomoe.model.structure import Part, part_of
from evomoe.support.text import readable


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters, as numbers of scalars: of the model or a part of it, used for one token, of the routers, and trained.

    One token runs K of E experts per MoE layer, and all else. Of the routers' two hypernetworks a token uses one, but both
    count as activated, as they do in the paper's Table 1.
    """

    total: int
    activated: int
    router: int
    trained: int


def count_parameters(model: PreTrainedModel, trained: Iterable[str] | None = None, part: Part | None = None) -> ParameterCounts:
    """Counts a model's parameters; tied ones count once.

    Args:
        model: dense or sparse.
        trained: names of those that train (default: those that require gradients).
        part: count only the language model ("text"), the projector or the vision tower.
    """
    parameters = dict(model.named_parameters())  # tied parameters appear once
    if part is not None:
        parameters = {name: parameters[name] for name, of in part_of(model).items() if of == part}
    blocks = [module for module in model.modules() if isinstance(module, EvoMoEBlock)]
    idle = sum(
        p.numel()
        for b in blocks
        if any(parameter is next(b.experts.parameters()) for parameter in parameters.values())
        for number in range(b.moe.num_experts_per_tok, len(b.experts))
        for p in b.experts.weights(number).values()
    )
    router = {id(p) for b in blocks for p in b.router.parameters()}
    names = {name for name, p in parameters.items() if p.requires_grad} if trained is None else set(trained)
    return ParameterCounts(
        total=sum(p.numel() for p in parameters.values()),
        activated=sum(p.numel() for p in parameters.values()) - idle,
        router=sum(p.numel() for p in parameters.values() if id(p) in router),
        trained=sum(p.numel() for name, p in parameters.items() if name in names),
    )


def parameter_facts(counts: ParameterCounts) -> list[tuple[str, str]]:
    """Rows for a model card."""
    return [
        ("parameters", f"{readable(counts.total)}, of which {readable(counts.activated)} run per token"),
        ("router parameters", readable(counts.router)),
    ]


def large_router(model: nn.Module) -> str:
    """A warning if a layer's router has more parameters than the experts that a token runs there; empty if not."""
    blocks = (module for module in model.modules() if isinstance(module, EvoMoEBlock))
    for block in blocks:
        router = sum(p.numel() for p in block.router.parameters())
        run = block.moe.num_experts_per_tok * sum(p.numel() for p in block.experts.weights(0).values())
        if router > run:
            options = " ".join(f"`router_options.{name}={value}`" for name, value in block.router.Options.smaller.items())
            smaller = f"; smaller: {options}" if options else ""
            return (
                f"Warning: the router of layer {block.layer} has {readable(router)} parameters, the experts that a token runs there "
                f"{readable(run)}{smaller}"
            )
    return ""
