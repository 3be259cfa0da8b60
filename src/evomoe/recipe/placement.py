"""Which decoder layers become MoE layers.

Implements: Table 6 (placements).

Needs neither torch nor transformers.
"""

from collections.abc import Sequence

from evomoe.support.errors import OptionError, no_such


def moe_layers(placement: str | Sequence[int], num_layers: int) -> list[int]:
    """Resolves a placement to layer indices.

    Args:
        placement: "alternating" (0, 2, 4, ...: the paper's), "all", "without_first" (2, 4, ...: alternating without the
            first), or the indices themselves.
        num_layers: L.

    Raises:
        OptionError: unknown name, or an index that no layer has.
    """
    if isinstance(placement, str):
        named = {
            "alternating": range(0, num_layers, 2),
            "all": range(num_layers),
            "without_first": range(2, num_layers, 2),
        }
        if placement not in named:
            raise OptionError("moe_layers", f"{no_such(placement, named)}, or list layer indices.")
        return list(named[placement])
    if not isinstance(placement, Sequence) or not all(isinstance(index, int) for index in placement):
        raise OptionError("moe_layers", f"{placement!r} must be a name or a list of layer indices.")
    wrong = [index for index in placement if not 0 <= index < num_layers]
    if wrong or len(set(placement)) != len(placement):
        raise OptionError("moe_layers", f"{list(placement)} must be distinct indices from 0 to {num_layers - 1}.")
    return sorted(placement)


def parse_placement(text: str) -> str | list[int]:
    """ "0,2,5" -> [0, 2, 5]; a name stays a name."""
    parts = text.replace(",", " ").split()
    return [int(part) for part in parts] if parts and all(part.isdigit() for part in parts) else text
