"""The options of a row of a table, such as those of a router: a dataclass for each. Needs neither torch nor transformers."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, get_type_hints

from evomoe.recipe.options import LARGEST_SEED, check_whole
from evomoe.recipe.value_types import unsuited
from evomoe.support.errors import OptionError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class RowOptions:
    """Base class of the options of a router or an initialiser. This one has none."""


@dataclass(frozen=True)
class RouterOptions(RowOptions):
    """Base class of a router's options. This one has none.

    Attributes:
        smaller: options under which the router has fewer parameters, for a small model.
    """

    smaller: ClassVar[dict[str, Any]] = {}

    def check(self, num_experts: int) -> None:
        """Raises OptionError if a value is out of its range."""


class RouterWarning(UserWarning):
    """Options of a router do less than they seem to."""


@dataclass(frozen=True)
class InitOptions(RowOptions):
    """Base class of an initialiser's options. This one has none.

    Attributes:
        from_stage2: name of the option that Stage II's file of experts goes into; empty for an initialiser that needs none.
    """

    from_stage2: ClassVar[str] = ""

    def check(self, given: bool = True) -> None:
        """Raises OptionError if a value is out of its range; ``given`` is whether what Stage II gives is there already."""

    def check_fits(self, ffns: Mapping[int, "nn.Module"], num_experts: int) -> None:
        """Raises ValueError if what an option names does not fit to the FFNs of the MoE layers, which may be without weights."""


AnyOptions = TypeVar("AnyOptions", bound=RowOptions)


def describe_options(kind: type[RowOptions]) -> str:
    """The options with their defaults: "hypernet_width=64, rank=16"; or "none"."""
    return (
        ", ".join(name if default in ("", None) else f"{name}={default}" for name, default in _defaults(kind).items()) or "none"
    )


WIDEST = 16_384
"""A router's hidden layer wider than that is larger than the experts that it chooses among."""


def check_width(option: str, width: int) -> None:
    """Raises OptionError if a router's hidden layer cannot be so wide."""
    if width < 1:
        raise OptionError(option, f"{width} must be at least 1.")
    if width > WIDEST:
        raise OptionError(option, f"{width} is wider than the experts that the router would choose among; {WIDEST} is the most.")


_LARGEST = 1e6
"""No option that is a fraction, a rate or a weight is larger."""


def _check_size(option: str, value: Any) -> None:
    """Raises OptionError for a number that no row of a table can mean: it would take all memory, or overflow."""
    if option.endswith("seed"):
        check_whole(option, value, 0, LARGEST_SEED)
    elif type(value) is int and abs(value) > WIDEST:
        raise OptionError(option, f"{value} is more than any model has; {WIDEST} is the most.")
    elif isinstance(value, float) and not abs(value) <= _LARGEST:  # also for nan
        raise OptionError(option, f"{value:g} must be a finite number, and {_LARGEST:g} is the most.")


def read_options(kind: type[AnyOptions], values: Mapping[str, Any], of: str) -> AnyOptions:
    """Makes the options of plain values, as a configuration or the command line has them.

    Args:
        kind: the options.
        values: by name.
        of: what they are options of, "router 'dtr'".

    Raises:
        OptionError: there is no such option, or a value is not of its type.
    """
    hints, known = get_type_hints(kind), {field.name for field in fields(kind)}
    part = f"{of.partition(' ')[0]}_options"
    for option, value in values.items():
        if option not in known:
            raise OptionError(part, f"{of} takes no '{option}'; it takes {describe_options(kind)}.")
        if wanted := unsuited(hints[option], value):
            raise OptionError(f"{part}.{option}", f"{of} takes {wanted}, not {value!r}.")
        _check_size(f"{part}.{option}", value)
    return kind(**values)


def _defaults(kind: type[RowOptions]) -> dict[str, Any]:
    found = {}
    for field in fields(kind):
        made = None if field.default_factory is MISSING else field.default_factory() or None
        found[field.name] = made if field.default is MISSING else field.default
    return found
