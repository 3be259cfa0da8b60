"""Work that several processes of this machine share."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from evomoe.support.errors import OptionError

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
        worker_init_fn=_begin,
        generator=torch.Generator(),  # torch's own would give later users other numbers
    )
    try:
        for result, error in loader:
            if error is not None:
                raise error
            yield result
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error):
            raise
        raise OptionError(
            "workers", f"a process ended before its time. If memory was short, take fewer than {workers}."
        ) from error


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


def _begin(number: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each worker is one thread
