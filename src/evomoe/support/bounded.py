"""Bounds of time and memory for what other people's programs do in this process, such as chat templates."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_AGAIN = 0.5
"""Seconds after which a block is stopped once more, if it passed over the first time."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in the block after so many seconds; in the main thread of a Unix process, the only one that can be told."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError(f"it was not done after {seconds:g} s")

    start, before = time.monotonic(), signal.signal(signal.SIGALRM, stop)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:  # somebody else's alarm, which shall ring when it would have
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - start), 0.001), interval)


@contextmanager
def memory_limit(size: int) -> Iterator[None]:
    """Lets the block take so many bytes more, then raises MemoryError. Without effect outside of Linux, and once CUDA runs.

    The limit is the whole process's, and CUDA reserves addresses whenever it likes.
    """
    torch = sys.modules.get("torch")
    if sys.platform != "linux" or (torch is not None and torch.cuda.is_initialized()):
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = _pages() * resource.getpagesize()
    limit = used + size if soft == resource.RLIM_INFINITY else min(used + size, soft)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _pages() -> int:
    """The pages of this process's addresses. Read without a file object: this is asked at every record."""
    opened = os.open("/proc/self/statm", os.O_RDONLY)
    try:
        return int(os.read(opened, 64).split()[0])
    finally:
        os.close(opened)
