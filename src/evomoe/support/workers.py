"""Work that several processes of this machine share."""

import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.queues import Queue
from typing import Generic, TypeVar

from evomoe.support.errors import OptionError, foreign

Item = TypeVar("Item")
Result = TypeVar("Result")


def mapped(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """What ``function`` makes of each item, in their order.

    Args:
        function: whatever it raises is raised here.
        workers: how many processes work; 0 works in this one. They are torch's, which end with this one.

    Raises:
        OptionError: a process ended before its time.
    """
    if not workers or len(items) < 2:
        yield from map(function, items)
        return
    import torch
    from torch.utils.data import DataLoader

    loader = DataLoader(
        _Work(function, items),  # pyrefly: ignore[bad-argument-type]: it has what is called of a data set
        batch_size=None,
        num_workers=min(workers, len(items)),
        collate_fn=_as_it_is,
        worker_init_fn=begin_worker,
        generator=torch.Generator(),  # torch's own would give later users other numbers
    )
    with ends_told(workers):
        for result, error in loader:
            if error is not None:
                raise error
            yield result


@contextmanager
def ends_told(workers: int) -> Iterator[None]:
    """Within the block, the end of a DataLoader's worker before its time is an error that says what to do.

    Raises:
        OptionError: a worker ended, or more files are open than this process may have.
    """
    try:
        yield
    except (RuntimeError, OSError) as error:
        if workers and (any(sign in str(error) for sign in _TOO_MANY) or getattr(error, "errno", None) == errno.EMFILE):
            raise OptionError(
                "workers",
                "the processes that prepare data need more open files than this one may have. Take fewer than "
                f"{workers}, or allow more (`ulimit -n 4096`).",
            ) from error
        if "DataLoader worker" not in str(error) or not any(sign in str(error) for sign in _ENDS):
            raise
        raise OptionError(
            "workers",
            f"a process that prepares data ended before its time. If memory was short, take fewer than {workers}. If /dev/shm is "
            "full, through which batches pass, give it more (`docker run --shm-size 8g`), or take 0 processes.",
        ) from error


_ENDS = ("exited unexpectedly", "killed by signal")
"""What torch says of it."""
_TOO_MANY = ("Too many open files. Communication with the workers", "items of ancdata")
"""What torch says of it, and Python, which was sent an open file and could take none."""


def begin_worker(number: int, then: Callable[[int], None] | None = None) -> None:
    """What each worker of a DataLoader begins with; ``then`` is called after it."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each worker is one thread
    Queue._on_queue_feeder_error = staticmethod(_end)  # pyrefly: ignore[missing-attribute]: for this process, which torch made
    if then:
        then(number)


def _end(error: Exception, batch: object) -> None:
    """Ends a worker that cannot hand over what it made. Python would print the error, and the loader would wait for ever."""
    try:
        print(f"A batch could not be handed over: {foreign(error)}", file=sys.stderr, flush=True)
    finally:
        os._exit(1)


class _Work(Generic[Item, Result]):
    def __init__(self, function: Callable[[Item], Result], items: Sequence[Item]) -> None:
        self._function, self._items = function, items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, number: int) -> tuple[Result | None, Exception | None]:
        try:
            return self._function(self._items[number]), None
        except Exception as error:  # which the loader would wrap in a traceback
            return None, error


def _as_it_is(result: Result) -> Result:
    return result
