"""The options of a router or an initialiser, read off its signature: what there is, and whether given values suit."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

Kind = Literal["router", "init"]

_HANDED_OVER: dict[Kind, int] = {"router": 2, "init": 4}
"""How many arguments a row of the table gets from the library; its further parameters are options."""

_SUITS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("true or false", lambda value: type(value) is bool),
    int: ("a whole number", lambda value: type(value) is int),
    float: ("a number", lambda value: type(value) in (int, float) and math.isfinite(value)),
}
_SUITS |= {
    kind | None: (f"{what} or nothing", lambda value, suits=suits: value is None or suits(value))
    for kind, (what, suits) in tuple(_SUITS.items())
}
"""By annotation or the type of the default: what a value must be, and whether it is."""


def describe_options(kind: Kind, function: Callable[..., Any]) -> str:
    """The options with their defaults, as the command line takes them: "hypernet_width=64, rank=16"; or "none"."""
    options, passes_on = _options(kind, function)
    shown = [name if default in ("", inspect.Parameter.empty) else f"{name}={default}" for name, default in options.items()]
    return ", ".join(shown + ["and those of the inner one"] * passes_on) or "none"


def check_options(kind: Kind, name: str, function: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Makes sure that a router or an initialiser takes the options that it is given.

    Args:
        kind: of what they are options.
        name: its name in the table.
        function: what stands there.
        values: the options.

    Raises:
        ValueError: it has no such option, or the value is not of its kind.
    """
    options, passes_on = _options(kind, function)
    for option, value in values.items():
        if option not in options and not passes_on:
            raise ValueError(
                f"--{kind}-options: {kind} '{name}' takes no '{option}'; it takes {describe_options(kind, function)}."
            )
        what, suits = _SUITS.get(_kind(function, option), ("", lambda value: True))
        if not suits(value):
            raise ValueError(f"--{kind}-options: {option} of {kind} '{name}' is {value!r}; it must be {what}.")


def _kind(function: Callable[..., Any], option: str) -> Any:
    """An option's annotation, or the type of its default."""
    parameter = inspect.signature(function).parameters.get(option, inspect.Parameter("other", inspect.Parameter.KEYWORD_ONLY))
    return parameter.annotation if parameter.annotation in _SUITS else type(parameter.default)


def _options(kind: Kind, function: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """The default of each option, and whether others are taken too, for something inside."""
    parameters = list(inspect.signature(function).parameters.values())[_HANDED_OVER[kind] :]
    passes_on = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD}, passes_on
