"""What is made of weights alone, once for a whole answer: within ``generate`` no weight changes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

_STORE: ContextVar[dict[int, Tensor] | None] = ContextVar("evomoe_kept", default=None)


@contextmanager
def weights_stay() -> Iterator[None]:
    """Within the block no weight changes, so that what was made of them may be used again."""
    token = _STORE.set({})
    try:
        yield
    finally:
        _STORE.reset(token)


def kept(owner: nn.Module, make: Callable[[], Tensor]) -> Tensor:
    """What ``make`` makes of a module's weights: once within ``weights_stay``, else anew each time."""
    store = _STORE.get() if not torch.compiler.is_compiling() else None
    if store is None:
        return make()
    if id(owner) not in store:
        store[id(owner)] = make()
    return store[id(owner)]
