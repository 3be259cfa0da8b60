"""Options given as ``name=value`` on the command line, a dict in Python."""

import json
from collections.abc import Sequence
from typing import Annotated, Any

from tyro.constructors import PrimitiveConstructorSpec


def parse_named_values(items: Sequence[str]) -> dict[str, Any]:
    """["rank=8", "inner=dtr"] -> {"rank": 8, "inner": "dtr"}; a value that is no JSON stays text.

    Raises:
        ValueError: an item is not of the form name=value, or its name stood there before.
    """
    values: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not equals or not name:
            raise ValueError(f"'{item}' is not of the form name=value")
        if name in values:
            raise ValueError(f"'{name}' stands there twice")
        try:
            values[name] = json.loads(text)
        except json.JSONDecodeError:
            values[name] = text
        except RecursionError:
            raise ValueError(f"'{name}': lists or objects are nested too deeply") from None
    return values


NamedValues = Annotated[
    dict[str, Any],
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME=VALUE ...]",
        instance_from_str=parse_named_values,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [f"{name}={json.dumps(item)}" for name, item in value.items()],
    ),
]
