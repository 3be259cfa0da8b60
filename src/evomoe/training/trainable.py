"""What trains in which stage.

Implements: Section 3.1 (what trains), Table 6 (trainable parameters).
"""

from collections.abc import Sequence

from transformers.modeling_utils import PreTrainedModel

from evomoe.model.block import EvoMoEBlock
from evomoe.model.structure import decoder_layers, ffn_names, module_name, part_of
from evomoe.support.errors import OptionError, no_such

PARTS = ("text", "projector", "vision", "ffn", "router", "experts")
PARTS_OF_PICTURES = ("projector", "vision")
"""Those that a batch without pictures does not need."""


def set_trainable(model: PreTrainedModel, what: str, moe_layers: Sequence[int]) -> list[str]:
    """Lets the named parts train, freezes the rest.

    Args:
        model: dense or sparse.
        what: parts joined by "+": text (all of the language model), projector, vision, ffn (the FFNs of the MoE layers of a
            dense model), router and experts (of a sparse model).
        moe_layers: indices of the MoE layers.

    Returns:
        The names of the parameters that train.

    Raises:
        OptionError: there is no such part, or this model has none of it.
    """
    check_parts(what)
    chosen: set[str] = set()
    for part in what.split("+"):
        names = names_in(model, part, moe_layers)
        if not names:
            raise OptionError("train", f"this model ({type(model).__name__}) has no parameters in '{part}'.")
        chosen |= names
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return [name for name, _ in model.named_parameters() if name in chosen]


def names_in(model: PreTrainedModel, part: str, moe_layers: Sequence[int]) -> set[str]:
    """The names of the parameters in one part, as ``set_trainable`` takes it; empty if the model has none of it."""
    part_by_name = part_of(model)
    if part in ("text", "projector", "vision"):
        return {name for name, of in part_by_name.items() if of == part}
    blocks = [name for name, module in model.named_modules() if isinstance(module, EvoMoEBlock)]
    if part == "ffn":
        if blocks:  # which has experts in their places
            return set()
        ffns, prefix = ffn_names(model), module_name(model, decoder_layers(model))
        return _below(part_by_name, [f"{prefix}.{index}.{ffns[index]}" for index in moe_layers])
    inside = ("router", "shared_expert_gate") if part == "router" else ("experts", "shared_expert")
    return _below(part_by_name, [f"{block}.{module}" for block in blocks for module in inside])


def check_parts(what: str) -> None:
    """Raises OptionError if ``what`` names a part that does not exist."""
    for part in what.split("+"):
        if part not in PARTS:
            if not what:
                raise OptionError("train", "it is empty. Start from the recipe's own options: recipe.but(stage2={'steps': 10}).")
            raise OptionError("train", f"{no_such(part, PARTS, 'part')}, joined by '+'.")


def _below(names: Sequence[str] | dict, prefixes: Sequence[str]) -> set[str]:
    return {name for name in names if any(name.startswith(prefix + ".") for prefix in prefixes)}
