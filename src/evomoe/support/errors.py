"""Errors about options. Whoever raises one says what is wrong; each reader sees the option under the name that they know.

A Python caller reads argument names: ``router_options.rank: 0 must be at least 1.`` The command line prints flags:
``--router-options.rank: 0 must be at least 1.`` Messages name further options in backticks: choose `` `gate=probability` ``.
"""

import re
import sys
import traceback
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

_REFERENCE = re.compile(r"`([a-z][a-z0-9_.]*)(?:=([^`]*))?`")


class OptionError(ValueError):
    """An option has a value that it cannot have.

    Args:
        option: its name in Python, with the parts that it lies in: ``seed``, ``stage2.steps``, ``router_options.rank``.
        message: what is wrong and what to do, without the option's name in front. Other options stand in backticks, with
            or without a value.
    """

    def __init__(self, option: str, message: str) -> None:
        super().__init__(option, message)  # both, so that the error can be pickled
        self.option, self.message = option, message

    def __str__(self) -> str:
        return f"{self.option}: {self.message}"


def no_such(name: str, known: Iterable[str], what: str = "") -> str:
    """Says that nothing has this name, what was perhaps meant, and what there is; without the full stop."""
    known = list(known)
    near = get_close_matches(name, known, 1)
    meant = f"did you mean '{near[0]}'? Choose" if near else "choose"
    return f"there is no {what and what + ' '}'{name}'; {meant} from {', '.join(known)}"


@contextmanager
def within(part: str) -> Iterator[None]:
    """Within the block, the options of errors lie in ``part``: ``steps`` becomes ``stage2.steps``."""
    try:
        yield
    except OptionError as error:
        raise OptionError(f"{part}.{error.option}", error.message) from error


_TABLES = ("init_options", "inner_options", "aux_losses", "trainer")
"""Options that the command line takes as NAME=VALUE after one flag, so that what lies in them has no flag."""


def as_flag(option: str) -> str:
    """An option as the command line has it: ``stage2.batch_size`` is ``--stage2.batch-size``.

    An option within a table of names and values stands after the table's flag: ``init_options.std`` is ``--init-options std``.
    """
    before, _, last = option.rpartition(".")
    if before.rpartition(".")[2] in _TABLES:
        return f"{as_flag(before)} {last}"
    return "--" + option.replace("_", "-")


@contextmanager
def out_of(part: str) -> Iterator[None]:
    """Within the block, the options of errors no longer lie in ``part``, which the caller does not name."""
    try:
        yield
    except OptionError as error:
        raise OptionError(error.option.removeprefix(f"{part}."), error.message) from error


def foreign(error: BaseException) -> str:
    """The first line of another program's error, or its kind; what it has in backticks is no option of ours."""
    return str(error).strip().partition("\n")[0].replace("`", "'") or type(error).__name__


_NOT_OWN = {"evomoe", "torch", "transformers", *sys.stdlib_module_names} - {"__main__"}


def place(error: BaseException) -> str:
    """Where in a user's own code an error was raised, " (FILE, line N)": the innermost frame that is theirs. Empty if none is."""
    own = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _NOT_OWN
    ]
    if own:
        return " ({}, line {})".format(*own[-1])
    return place(error.__cause__) if error.__cause__ else ""


def plain(error: Exception | Warning | str) -> str:
    """An error's text; of a system's the file and what is wrong, without the number, which tells people nothing."""
    if isinstance(error, OSError) and error.strerror and type(error).__str__ is OSError.__str__:
        return f"{error.strerror}." if error.filename is None else f"{error.filename}: {error.strerror}."
    return str(error)


def broken_torchvision(error: BaseException) -> str:
    """What to do about a torchvision that was made for another torch: transformers imports it wherever it is."""
    return f"torchvision cannot be imported ({foreign(error)}): install the one that goes with this torch, or remove it."


def told_by_others(error: RuntimeError | MemoryError) -> str:
    """The sentence for what torch and Python raise on a machine that lacks something; empty for whatever else they raise."""
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        asked = re.search(r"tried to allocate (\d+) bytes", str(error))
        more = f": {int(asked[1]) / 1e6:,.1f} MB more were asked for" if asked else ""
        return f"there is not enough memory{more}. Let other programs end, allow more (`ulimit -v`), or take smaller batches."
    # Of a package for another torch, whenever transformers first looks for it.
    return broken_torchvision(error) if "torchvision::" in str(error) else ""


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Lets a panic of a program in Rust, such as tokenizers, which is no Exception, be one."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(str(error)) from error


def with_flags(error: Exception | Warning | str, positional: Collection[str] = (), options: Collection[str] | None = None) -> str:
    """What the command line prints of an error: flags in place of arguments.

    Args:
        error: any error, or its text.
        positional: names of arguments that have no flag.
        options: the first parts of all options; what else stands in backticks was written by others and stays. None: any.
    """

    def flag(option: str) -> str:
        return option if option in positional else as_flag(option)

    def rendered(found: re.Match) -> str:
        name, value = found.groups()
        if options is not None and name.partition(".")[0] not in options:
            return found[0]
        if value == "False":
            return flag(f"no_{name}")
        return flag(name) if value in (None, "True") else f"{flag(name)} {value}"

    if isinstance(error, OptionError):
        return f"{flag(error.option)}: {_REFERENCE.sub(rendered, error.message)}"
    return _REFERENCE.sub(rendered, plain(error))
