"""How the command line speaks to people: errors, warnings, what to do after Ctrl-C."""

import inspect
import logging
import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn, TextIO, get_args, get_type_hints

import tyro

from evomoe.support.errors import with_flags
from evomoe.support.files import room_for

_AT_IMPORT = {"torchao": "Failed to load", "torch.utils._pytree": "is an Enum subclass"}
"""What libraries log while they are imported, by logger: of kernels for other machines, which tells a user nothing."""

RESUME = "The same command with --resume goes on from the last checkpoint."


def refuse(error: Exception | str) -> NoReturn:
    """Ends as the parser does when it is given a wrong option."""
    print(f"evomoe: {with_flags(error)}", file=sys.stderr)
    sys.exit(2)


def open_closed_streams() -> None:
    """Gives the null device to those of stdin, stdout and stderr that the caller has closed, or the next file would take their place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (it stays open as long as the process)


class _Named:
    """A stream whose errors of a full disk name it: the system's do not."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._naming():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._naming():
            self._stream.flush()

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            with room_for("what goes to stdout"):
                yield
        except OSError:
            leave_stdout(self._stream)
            raise


def leave_stdout(stream: TextIO) -> None:
    """Lets go nowhere what is still to be written: Python would try once more at its end, and say so."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def named_stdout() -> Iterator[None]:
    """Within the block, a full disk behind stdout is said to be that, whoever prints."""
    with redirect_stdout(_Named(sys.stdout)):
        yield


def positional(verb: Callable[..., None]) -> set[str]:
    """The names of a verb's arguments that are given by their place and have no flag."""
    hints = get_type_hints(verb, include_extras=True)
    return {name for name, hint in hints.items() if tyro.conf.Positional in get_args(hint)}


def option_names(verb: Callable[..., None]) -> set[str]:
    """The names of a verb's arguments, and of the fields of those that are dataclasses."""
    names = set(inspect.signature(verb).parameters)
    for hint in get_type_hints(verb).values():
        names |= {option.name for option in fields(hint)} if is_dataclass(hint) else set()
    return names


@contextmanager
def when_interrupted(hint: Callable[[], str]) -> Iterator[None]:
    """Lets Ctrl-C within the block say how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(hint()) from None


@contextmanager
def plain_warnings(positional: Collection[str] = ()) -> Iterator[None]:
    """Within the block, what this package warns of is one line, once, without the place in the code; other warnings are as they were.

    What libraries log of kernels for other machines while they are imported is not shown.

    Args:
        positional: names of arguments that have no flag.
    """
    said = set()
    for name, told in _AT_IMPORT.items():
        logging.getLogger(name).addFilter(lambda record, told=told: told not in record.getMessage())
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_plainly(message, category, filename, *more, **options):
            if not category.__module__.startswith("evomoe."):
                show(message, category, filename, *more, **options)
            elif str(message) not in said:
                said.add(str(message))
                print(f"evomoe: warning: {with_flags(message, positional)}", file=sys.stderr)

        warnings.showwarning = show_plainly
        yield


def hide_loading_bars() -> None:
    """Leaves the screen to the bars that tell something: transformers draws one for every file it reads or writes."""
    from transformers.utils import logging

    logging.disable_progress_bar()
