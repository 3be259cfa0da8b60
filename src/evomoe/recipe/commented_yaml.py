"""A recipe as YAML with the meaning of every option, to be changed by hand: ``evomoe recipe > mine.yaml``."""

import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from evomoe.recipe.recipe import Recipe
from evomoe.support.yaml_text import in_a_line

_FIELD = re.compile(r" {4}(\w+): (.*)")
_WIDTH = 96


def commented_yaml(recipe: Recipe) -> str:
    """The recipe, which ``Recipe.load`` reads from a file with this text. What a recipe does not name yet is left empty."""
    head = (
        "A recipe of `evomoe train --recipe THIS_FILE`. What you leave out keeps its default; flags come before what stands here."
    )
    return "\n".join([*_comment(head, ""), "", *_lines(recipe, ""), ""])


def meanings(options: type) -> dict[str, str]:
    """What each field of a dataclass means, by its docstring."""
    found: dict[str, str] = {}
    name = ""
    for line in (inspect.getdoc(options) or "").partition("Attributes:\n")[2].splitlines():
        if match := _FIELD.fullmatch(line):
            name = match[1]
            found[name] = match[2]
        elif name and line.strip():
            found[name] += " " + line.strip()
    return found


def _lines(options: Any, indent: str) -> Iterator[str]:
    told = meanings(type(options))
    for option in dataclasses.fields(options):
        value = getattr(options, option.name)
        yield from _comment(told.get(option.name, ""), indent)
        if dataclasses.is_dataclass(value):
            yield f"{indent}{option.name}:"
            yield from _lines(value, indent + "  ")
        else:
            yield f"{indent}{option.name}: {_flow(value)}".rstrip()


def _flow(value: Any) -> str:
    """A value in a line; nothing for an empty text."""
    if value == "":
        return ""
    return in_a_line(json.loads(json.dumps(value)))  # lists for tuples


def _comment(text: str, indent: str) -> list[str]:
    text = text.replace("``", "`")
    return textwrap.wrap(text, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ") if text else []
