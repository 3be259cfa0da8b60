"""Whether an option's value is of the type that its dataclass says. Python does not look, and JSON and users err."""

import math
import numbers
import os
from collections.abc import Callable, Collection
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from evomoe.support.errors import OptionError

_SUITS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("true or false", lambda value: type(value) is bool),
    int: ("a whole number", lambda value: type(value) is int),
    float: ("a number", lambda value: isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)),
    str: ("text", lambda value: isinstance(value, str)),
    dict: ("names with values", lambda value: isinstance(value, dict)),
}
"""By type: what a value must be, and whether it is. A value of any other type is let pass."""


def unsuited(hint: Any, value: Any) -> str:
    """What a value of this type must be, if this one is not; empty if it is."""
    if get_origin(hint) is Literal:
        return "" if value in get_args(hint) else f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) in (Union, UnionType):
        parts = [part for part in get_args(hint) if part is not NoneType]
        if value is None and NoneType in get_args(hint):
            return ""
        wanted = [unsuited(part, value) for part in parts]
        return "" if "" in wanted else f"{' or '.join(wanted)}{' or nothing' if NoneType in get_args(hint) else ''}"
    if get_origin(hint) in (tuple, list):
        if not isinstance(value, tuple | list):
            return "a list"
        kinds = get_args(hint)
        if get_origin(hint) is tuple and kinds[-1] is not Ellipsis and len(value) != len(kinds):
            return f"a list of {len(kinds)}"
        wanted = next(filter(None, (unsuited(kinds[0], part) for part in value)), "")
        return wanted and f"a list, and each entry {wanted}"
    if is_dataclass(hint):
        return "" if isinstance(value, hint) else f"of class {hint.__name__}"
    what, suits = _SUITS.get(get_origin(hint) or hint, ("", lambda value: True))
    return "" if suits(value) else what


def plain(value: Any) -> Any:
    """The same value as JSON could hold it: a path as text, NumPy's numbers as Python's, a list as a tuple."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, numbers.Number) and not isinstance(value, bool | int | float):
        return int(value) if isinstance(value, numbers.Integral) else float(value) if isinstance(value, numbers.Real) else value
    return tuple(map(plain, value)) if isinstance(value, list | tuple) else value


def check_types(options: Any) -> None:
    """Makes the values of a dataclass's fields plain. What the command line has not read yet passes.

    Raises:
        OptionError: a value is of another type than its field.
    """
    hints = _hints(type(options))
    for field in fields(options):
        value = plain(getattr(options, field.name))
        if value is tyro.MISSING:
            continue
        object.__setattr__(options, field.name, list(value) if get_origin(hints[field.name]) is list else value)
        if hints[field.name] is float and isinstance(value, float):
            continue  # the range that a number must lie in is for the caller to say
        if wanted := unsuited(hints[field.name], value):
            if isinstance(value, str) and wanted.startswith("one of "):
                raise OptionError(field.name, f"there is no '{value}'; choose from {wanted.removeprefix('one of ')}.")
            raise OptionError(field.name, f"{value!r} must be {wanted}.")


def check_names(given: Collection[str], known: Collection[str], what: str) -> None:
    """Raises OptionError if a keyword argument is none of the options of ``what``."""
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            meant = f" Did you mean `{near[0]}`?" if near else f" It has {', '.join(known)}."
            raise OptionError(name, f"{what} has no such option.{meant}")


_hints = cache(get_type_hints)
