"""What a function of a table needs that not every caller can give, declared beside the function."""

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def needs(*names: str) -> Callable[[Function], Function]:
    """Declares what a function needs. What the names mean, the table says that the function stands in."""

    def declare(function: Function) -> Function:
        vars(function)["needs"] = names
        return function

    return declare


def needs_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """What a function has declared; nothing for one that declares nothing."""
    return getattr(function, "needs", ())
