"""Names of files, folders, models and datasets: whether they can be what the user means."""

import logging
import os
import re
from difflib import get_close_matches
from glob import glob
from itertools import islice
from pathlib import Path

from evomoe.support.errors import OptionError, foreign
from evomoe.support.text import shortened

logger = logging.getLogger(__name__)


def _is_there(path: str | Path) -> bool:
    """Whether a path leads anywhere; raises ValueError for one that can lead nowhere, such as one that is too long.

    One that is no text cannot be written into a recipe, a result or a page.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{shortened(repr(str(path)))} is not UTF-8 text, so that nothing could name it later. Rename it."
        ) from error
    try:
        return Path(path).exists()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else foreign(error)
        raise ValueError(f"{shortened(repr(str(path)))} cannot be looked for: {reason}. Name another.") from error


def refuse_missing(name: str | Path) -> None:
    """Refuses a name that can only be a path, and leads nowhere; any other may be that of a model or a dataset on the hub.

    Raises:
        ValueError: there is no such file or folder.
    """
    text, path = str(name), Path(name)
    if _is_there(name):
        return
    if is_pattern(text):
        matching(text)
        return
    near = _near(path)
    meant = f" Is {near} meant?" if near else ""
    if path.suffix in (".json", ".jsonl", ".tar", ".parquet"):
        raise ValueError(f"{name}: there is no such file.{meant}")
    if path.is_absolute() or text.startswith((".", "~")) or text.count("/") > 1:
        raise ValueError(f"{name}: there is no such folder.{meant}")
    if near:
        logger.warning("There is no %s here, so the hub is asked.%s", name, meant)


def _near(path: Path) -> Path | None:
    """What lies beside the place of a path that leads nowhere, and is called nearly so; of a large folder a part is looked at."""
    try:
        beside = {file.name: file for file in islice(path.parent.iterdir(), 1000)}
    except OSError:
        return None
    names = get_close_matches(path.name, beside, 1, 0.75)
    return beside[names[0]] if names else None


_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def is_pattern(name: str) -> bool:
    """Whether a name stands for several files: ``part-*.jsonl``, ``{000..099}.tar``."""
    return not os.path.exists(name) and any(sign in name for sign in "*?[{")


def matching(pattern: str) -> list[Path]:
    """The files that a pattern stands for, in order.

    Raises:
        ValueError: there is none; of a range, one of them is not there.
    """
    if found := _RANGE.search(pattern):
        first, last = found.groups()
        if int(first) > int(last):
            raise ValueError(f"{pattern}: a range goes up, such as {{000..099}}.")
        numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
        return [path for number in numbers for path in matching(pattern[: found.start()] + number + pattern[found.end() :])]
    files = [path for path in sorted(map(Path, glob(pattern))) if path.is_file()]
    if not files:
        raise ValueError(f"{pattern}: there is no such file.")
    return files


def only_streamed(name: str) -> bool:
    """Whether data of this name can be read as a stream alone."""
    return is_pattern(name) or Path(name).suffix.lower() in (".tar", ".parquet")


_NO_NETWORK = ", or, without a network, set HF_HUB_OFFLINE=1, so that nothing is waited for."


def not_on_hub(name: str | Path, kind: str, error: Exception) -> str:
    """The message for a name that is nowhere on this machine and that the hub gives no ``kind`` for, with its first reason."""
    reason = foreign(error).rstrip(".")
    return (
        f"{name}: there is no such {'folder' if kind == 'model' else 'file or folder'}, and the hub gives no such {kind} ({reason}); "
        "name a local folder" + ("." if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else _NO_NETWORK)
    )


def refuse_special(path: str | Path) -> None:
    """Raises ValueError for a pipe, a device or a socket, which may never end."""
    if Path(path).exists() and not Path(path).is_file() and not Path(path).is_dir():
        raise ValueError(f"{path} is not a regular file; write its contents into one.")


def check_folder(option: str, path: str | Path) -> None:
    """Raises OptionError if there is no such folder."""
    if not Path(path).is_dir():
        raise OptionError(option, f"{path} is not a folder.")


def check_output_folder(path: str | Path, option: str = "output") -> None:
    """Raises OptionError if an option names a file, something within one, or what can be no folder."""
    try:
        there = _no_folder(path)
    except ValueError as error:
        raise OptionError(option, str(error)) from error
    if there is not None:
        raise OptionError(option, f"{there} is a file; name a folder.")


def _no_folder(path: str | Path) -> Path | None:
    """The file, pipe or device that a path names, or that it would lie in."""
    there = next((one for one in (Path(path), *Path(path).parents) if _is_there(one)), None)
    return None if there is None or there.is_dir() else there


def refuse_existing(path: str | Path, kind: str = "folder") -> None:
    """Raises ValueError if there is something of that name already; ``kind`` is what was to be written there."""
    if _is_there(path):
        raise ValueError(f"{path} exists already; name another {kind}.")
    if (there := _no_folder(path)) is not None:
        raise ValueError(f"{there} is a file, so nothing can lie in it; name another {kind}.")


_OF_SYSTEMS = {"thumbs.db", "desktop.ini"}
_ABOUT = {"readme", "license", "licence"}


def own_files(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder that match, by name, without those that systems and people leave about: ``._x`` of macOS, README.txt."""

    def is_own(path: Path) -> bool:
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
        return path.is_file() and not hidden and path.name.lower() not in _OF_SYSTEMS and path.stem.lower() not in _ABOUT

    return sorted(filter(is_own, folder.glob(pattern)))


def split_name(name: str) -> tuple[str, str | None]:
    """ "path/or/name:split" -> "path/or/name", "split"; without a split, None."""
    if os.path.exists(name):
        return name, None
    base, colon, split = name.rpartition(":")
    return (base, split) if colon else (name, None)
