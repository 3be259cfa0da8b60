"""What trains in which stage.

Implements: Section 3.1 (what trains), Table 6 (trainable parameters).
"""

from collections.abc import Sequence

from torch import nn

from evomoe.modeling import EvoMoEBlock
from evomoe.structure import decoder_layers, ffn_names, module_name, part_of

PARTS = ("text", "projector", "vision", "ffn", "router", "experts")


def set_trainable(model: nn.Module, what: str, moe_layers: Sequence[int]) -> list[str]:
    """Lets the named parts train, freezes the rest.

    Args:
        model: dense or sparse.
        what: parts joined by "+": text (all of the language model), projector, vision, ffn (the FFNs of the MoE layers of a
            dense model), router and experts (of a sparse model).
        moe_layers: indices of the MoE layers.

    Returns:
        The names of the parameters that train.

    Raises:
        ValueError: there is no such part, or this model has none of it.
    """
    check_parts(what)
    chosen: set[str] = set()
    part_by_name = part_of(model)
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, EvoMoEBlock)}
    for part in what.split("+"):
        if part in ("text", "projector", "vision"):
            names = {name for name, of in part_by_name.items() if of == part}
        elif part == "ffn":
            ffns, layers = ffn_names(model), decoder_layers(model)
            prefix = module_name(model, layers)
            names = _below(part_by_name, [f"{prefix}.{index}.{ffns[index]}" for index in moe_layers])
        elif part == "router":
            names = _below(part_by_name, [f"{b}.{m}" for b in blocks for m in ("router", "shared_expert_gate")])
        else:
            names = _below(part_by_name, [f"{b}.{m}" for b in blocks for m in ("experts", "shared_expert")])
        if not names:
            raise ValueError(f"train: this model ({type(model).__name__}) has no parameters in '{part}'.")
        chosen |= names
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return [name for name in part_by_name if name in chosen]


def check_parts(what: str) -> None:
    """Raises ValueError if ``what`` names a part that does not exist."""
    for part in what.split("+"):
        if part not in PARTS:
            raise ValueError(f"train: there is no part '{part}'; choose from {', '.join(PARTS)}, joined by '+'.")


def _below(names: Sequence[str] | dict, prefixes: Sequence[str]) -> set[str]:
    return {name for name in names if any(name.startswith(prefix + ".") for prefix in prefixes)}
