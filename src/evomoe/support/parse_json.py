"""JSON text of users' files, with errors that say where it is broken."""

import json
from collections.abc import Callable
from typing import Any

Pairs = list[tuple[str, Any]]  # keys and values of a JSON object, as they stand in the text


def parse_json(text: str, name: str, first_line: int = 1, make_object: Callable[[Pairs], Any] | None = None) -> Any:
    """The value of a JSON text; raises ValueError, with the name, line and column of what is broken.

    ``make_object`` makes an object of its keys and values; without it, the last one of equal keys counts.
    """
    try:
        return json.loads(text, object_pairs_hook=make_object)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise ValueError(f"{name}, line {line}, column {error.colno}: broken JSON: {error.msg}") from error
    except RecursionError as error:
        raise ValueError(f"{name}: broken JSON: lists or objects lie in each other too deeply.") from error
    except ValueError as error:  # a number of thousands of digits
        raise ValueError(f"{name}: broken JSON: {error}") from error
    except MemoryError as error:
        raise ValueError(
            f"{name}: this much JSON does not fit into memory; write JSON lines (.jsonl), one record a line."
        ) from error
