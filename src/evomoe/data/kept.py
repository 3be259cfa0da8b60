"""What checks have found, kept beside the data, so that the next run on the same data starts at once.

An outcome is named after the content of the data and everything else that it depends on, this room's code included. One that
cannot be read counts for none. Files are safetensors, with a sum of what they hold.
"""

import gc
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from filelock import FileLock, Timeout
from safetensors import safe_open

from evomoe.support.content import text_hash
from evomoe.support.files import cache_folder, write_arrays
from evomoe.support.version import __version__

logger = logging.getLogger(__name__)

_FOLDER, _SUFFIX, _FACTS, _SUM = ".evomoe", "safetensors", "facts", "sum"
PATIENCE = 5.0
"""Seconds to wait for another process before that is said."""
_NAMED = 16
"""Characters of a hash in a file's name."""

Outcome = TypeVar("Outcome")


class Found(NamedTuple):
    """An outcome as it is kept.

    Attributes:
        arrays: numbers by name.
        facts: what JSON can hold, by name.
    """

    arrays: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]


class Keeper:
    """Keeps the outcomes of checks of some data.

    Args:
        name: of the data, for the files' names.
        content: gives what the data hold, as a hash.
        home: the folder of the data, in which ``.evomoe`` is made. If it cannot be written, or there is none, outcomes are kept in
            evomoe's cache.
    """

    def __init__(self, name: str, content: Callable[[], str], home: Path | None) -> None:
        self.name, self._content = name.replace(os.sep, "-"), content
        of_home = text_hash([name if home is None else str(home.resolve())])[:_NAMED]
        cached = cache_folder() / "checks" / of_home
        self._folders = [cached] if home is None else [home / _FOLDER, cached]

    @cached_property
    def content(self) -> str:
        """What the data hold, as a hash."""
        return self._content()

    def outcome(
        self,
        kind: str,
        options: Mapping[str, Any],
        make: Callable[[Found | None], Outcome],
        write: Callable[[Outcome], Found | None],
        read: Callable[[Found], Outcome | None],
    ) -> Outcome:
        """A check's outcome, made only if it is not kept. Of several processes that want it, one makes it.

        Args:
            kind: which check.
            options: whatever else the outcome depends on.
            make: makes it anew; given what was kept and does not hold any more, if there is such.
            write: what to keep of it; None for nothing.
            read: the outcome of what was kept; None if it does not hold any more.
        """
        name = f"{self.name}.{self.content[:_NAMED]}.{kind}.{text_hash([self.content, _described(options)])[:_NAMED]}.{_SUFFIX}"
        found, outcome = self._read(name, read)
        if outcome is not None:
            return outcome
        with self._alone() as folder:
            found, outcome = self._read(name, read)
            if outcome is not None:  # another process has made it meanwhile
                return outcome
            outcome = make(found)
            if folder and (found := write(outcome)):
                self._keep(folder / name, found)
            return outcome

    def _read(self, name: str, read: Callable[[Found], Outcome | None]) -> tuple[Found | None, Outcome | None]:
        found = self._found(name)
        if found is None:
            return None, None
        collects = gc.isenabled()
        gc.disable()  # a million small objects are made, and it would look at all of them again and again
        try:
            return found, read(found)
        finally:
            if collects:
                gc.enable()

    def _found(self, name: str) -> Found | None:
        for folder in self._folders:
            try:
                with safe_open(folder / name, framework="np") as file:
                    arrays = {key: file.get_tensor(key) for key in [*file.keys()]}
                    told = file.metadata()
                if _sum(arrays, told[_FACTS]) == told[_SUM]:
                    return Found(arrays, json.loads(told[_FACTS]))
            except Exception:  # not there, cut off, of another kind: it is made anew
                continue
        return None

    @contextmanager
    def _alone(self) -> Iterator[Path | None]:
        """The folder in which outcomes can be kept; no other process makes one meanwhile. None if there is no such folder."""
        for folder in self._folders:
            lock = FileLock(folder / f"{self.name}.lock")
            with suppress(OSError, NotImplementedError):  # it cannot be written, or its file system has no locks
                folder.mkdir(parents=True, exist_ok=True)
                try:
                    lock.acquire(timeout=PATIENCE)
                except Timeout:  # an OSError of another kind
                    logger.warning("%s: another process checks the same data. This one waits for what it finds.", self.name)
                    lock.acquire()
                break
        else:
            logger.warning("%s: what the check finds cannot be kept: %s.", self.name, " and ".join(map(str, self._folders)))
            yield None
            return
        try:
            yield folder
        finally:
            lock.release()

    def _keep(self, path: Path, found: Found) -> None:
        facts = json.dumps(found.facts)
        try:
            write_arrays(path, found.arrays, {_FACTS: facts, _SUM: _sum(found.arrays, facts)})
            for other in path.parent.glob(f"*.{_SUFFIX}"):
                name, content, *_ = other.name.rsplit(".", 4)
                if name == self.name and content != self.content[:_NAMED]:  # the data hold something else now
                    other.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("What the check has found is not kept: %s", error)


def _described(options: Mapping[str, Any]) -> str:
    return json.dumps({**options, "code": _code(), "version": __version__}, sort_keys=True)


@cache
def _code() -> str:
    """The code of this room, by which outcomes were found."""
    return text_hash(path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py")))


def _sum(arrays: Mapping[str, np.ndarray], facts: str) -> str:
    total = hashlib.blake2b(facts.encode(), digest_size=16)
    for name in sorted(arrays):
        total.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        total.update(arrays[name].tobytes())
    return total.hexdigest()
