"""The rows of the tables that an option names: what stands there is looked at before it is used, for anybody may have added it."""

from collections.abc import Mapping
from typing import Any

from evomoe.support.errors import OptionError, no_such

OWN = "If it is your own, import the file that registers it first."


def check_row(
    option: str, name: str, table: Mapping[str, Any], derived_from: type | None = None, made_by: type | None = None
) -> None:
    """Raises OptionError if a table has no such row, or the row is not what the table holds.

    Args:
        option: what names the row.
        name: the row's.
        table: all rows: functions, unless one of the following is given.
        derived_from: the rows are classes derived from this one.
        made_by: the rows are objects of this class.
    """
    if name not in table:
        raise OptionError(option, f"{no_such(name, table)}. {OWN}")
    row = table[name]
    fits, wanted = callable(row), "a function"
    if derived_from:
        fits, wanted = isinstance(row, type) and issubclass(row, derived_from), f"a class derived from {_public(derived_from)}"
    if made_by:
        fits, wanted = isinstance(row, made_by), f"an object of {_public(made_by)}"
    if not fits:
        raise OptionError(option, f"{option.rpartition('.')[2]} '{name}' is not {wanted}.")


def _public(kind: type) -> str:
    """Where a class is imported from: a package of ours shows what its files define."""
    return f"{kind.__module__.rpartition('.')[0]}.{kind.__name__}"
