"""A checkpoint is whole or it is not one. Needs neither torch nor transformers.

It is written under another name, and gets its own when all of it is on the disk, with a list of its files and what they hold. Whoever
goes on from it compares them first.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evomoe.support.content import file_hash
from evomoe.support.errors import foreign
from evomoe.support.files import fresh_folder, naming, remove, same_permissions, sync, write_text

LIST = "files.json"
"""The files of a checkpoint, with their hashes."""

_ADVICE = "This checkpoint was not written{}. Make room, then go on with `resume=True`."


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints in a folder, whole or not, the newest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    return sorted(found, key=step_of, reverse=True)


@contextmanager
def writing(folder: Path, step: int, keep: int | None = None) -> Iterator[Path]:
    """Gives a checkpoint its place among the others when the block ends without an error.

    Args:
        folder: of all checkpoints.
        step: of this one.
        keep: how many stay, with it; None for all.

    Yields:
        The folder in which the block makes one of the checkpoint's name.
    """
    final, work = folder / f"checkpoint-{step}", folder / "partial"
    with naming(
        final, _ADVICE.format("; the one before it is whole" if checkpoints(folder) else ", and there is none before it")
    ):
        try:
            yield fresh_folder(work)
            made = work / final.name
            same_permissions(made)
            held = {str(file.relative_to(made)): file_hash(file) for file in sorted(made.rglob("*")) if file.is_file()}
            write_text(made / LIST, json.dumps(held, indent=1) + "\n")
            sync(made)
            remove(final)
            made.rename(final)
            sync(folder, below=False)
        finally:
            remove(work)
    by_age = sorted(checkpoints(folder), key=lambda path: (path == final, path.stat().st_mtime))
    for old in by_age[:-keep] if keep else ():
        remove(old)


def fault(checkpoint: Path) -> str:
    """What is wrong with a checkpoint, by the content of all its files; nothing if it is whole."""
    try:
        held = json.loads((checkpoint / LIST).read_text(encoding="utf-8"))
        for name, content in held.items():
            if not (checkpoint / name).is_file():
                return f"{name} is missing"
            if file_hash(checkpoint / name) != content:
                return f"{name} is damaged"
    except FileNotFoundError:
        return f"{LIST} is missing"
    except (OSError, ValueError, AttributeError) as error:
        return f"{LIST} cannot be read ({foreign(error)})" if not isinstance(error, OSError) else foreign(error)
    return "" if held else f"{LIST} is empty"


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole, and of each newer one what is wrong with it."""
    faults = []
    for checkpoint in checkpoints(folder):
        if not (wrong := fault(checkpoint)):
            return checkpoint, faults
        faults.append(f"{checkpoint.name}: {wrong}")
    return None, faults
