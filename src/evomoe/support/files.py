"""Writing files and folders so that what has the right name is whole."""

import errno
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from evomoe.support.names import refuse_existing

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor


ROOM = "It was not written: make room, or name another place."


class DiskError(OSError):
    """A file could not be read or written; the message names it and says what to do."""


_NUMBERED = re.compile(r"\(os error (\d+)\)")
_OF_TORCH = ("PytorchStreamWriter", "inline_container")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _refused(error: BaseException) -> tuple[int, str]:
    """What the system refused, by number and in words, in errors of Python's own and in those of libraries; 0 for other errors."""
    if isinstance(error, OSError):
        return error.errno or -1, error.strerror or str(error)
    if found := _NUMBERED.search(str(error)):  # safetensors and tokenizers
        return int(found[1]), os.strerror(int(found[1]))
    if any(part in str(error) for part in _OF_TORCH):  # which does not say why
        return errno.ENOSPC, "there is no room for all of it, or it is larger than files may be"
    return 0, ""


@contextmanager
def naming(path: str | Path, advice: str = ROOM, only: Collection[int] = ()) -> Iterator[None]:
    """Lets the error of a disk that is full, or closed to us, name the file and say what to do.

    Args:
        only: the numbers of the system's errors that are meant, where a block does more than write; by default all.
    """
    try:
        yield
    except DiskError:  # a file within has named itself
        raise
    except Exception as error:
        number, reason = _refused(error)
        if number == 0 or (only and number not in only):
            raise
        if number == errno.ENOENT and not (folder := Path(path).absolute().parent).is_dir():
            raise DiskError(f"{path}: there is no folder {folder}; make it, or name another place.") from error
        raise DiskError(f"{path}: {reason}. {advice}") from error


def room_for(path: str | Path, advice: str = ROOM) -> AbstractContextManager[None]:
    """As ``naming``, for a block that does more than write: the errors of a full disk, of a quota, and of a limit on files alone."""
    return naming(path, advice, _FULL)


def remove(path: Path) -> None:
    """Removes a file, a folder with all in it, or a link, never what a link leads to. There may be none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def fresh_folder(path: Path) -> Path:
    """An empty folder in place of whatever has its name."""
    remove(path)
    path.mkdir(parents=True)
    return path


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """A new file beside ``path``, which gets its name when the block ends without an error and is removed otherwise."""
    partial = path.with_name(path.name + ".partial")
    with naming(path):
        try:
            remove(partial)  # a link of that name would lead elsewhere
            with partial.open("x"):
                mode = partial.stat().st_mode
            yield partial
            partial.chmod(mode)  # safetensors writes for the user alone
            sync_file(partial)
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):
                remove(partial)
            raise


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file under a temporary name first.

    Raises:
        DiskError: it cannot be written; what had its name before is still there.
    """
    with _partial(Path(path)) as partial:
        partial.write_text(text, encoding="utf-8")


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file under a temporary name first.

    Raises:
        DiskError: it cannot be written; what had its name before is still there.
    """
    from safetensors.torch import save_file

    with _partial(path) as partial:
        save_file(dict(tensors), partial, metadata=dict(metadata or {}))


def write_arrays(path: Path, arrays: "Mapping[str, ndarray]", metadata: Mapping[str, str] | None = None) -> None:
    """The same of NumPy's arrays; without torch."""
    from safetensors.numpy import save_file

    with _partial(path) as partial:
        save_file(dict(arrays), partial, metadata=dict(metadata or {}))


def cache_folder() -> Path:
    """The folder for what is made once and kept: EVOMOE_CACHE, or ~/.cache/evomoe."""
    return Path(os.environ.get("EVOMOE_CACHE") or Path.home() / ".cache" / "evomoe")


def same_permissions(folder: Path) -> None:
    """Lets whoever may read a folder's texts read its weights, which safetensors writes for the user alone."""
    texts = [file for file in folder.glob("*.json")]
    for file in folder.glob("*.safetensors") if texts else ():
        file.chmod(texts[0].stat().st_mode)


def sync(folder: Path, below: bool = True) -> None:
    """Waits until a folder's names, and all files below it, are on the disk."""
    for path in [*folder.rglob("*"), folder] if below else [folder]:
        sync_file(path)


def sync_file(path: Path) -> None:
    """Waits until a file's content, or a folder's names, are on the disk."""
    if os.name == "nt" and path.is_dir():  # where folders cannot be opened
        return
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


class ShardWriter:
    """Writes a model's tensors shard by shard, named and indexed as transformers expects.

    Args:
        folder: where the shards go.
        size: bytes from which on a shard is written; tensors that were added are kept until then.
    """

    def __init__(self, folder: Path, size: int = 2 * 10**9) -> None:
        self.folder, self.size = folder, size
        self._waiting: dict[str, Tensor] = {}
        self._shards: list[list[str]] = []
        self._total = 0

    def add(self, tensors: "Mapping[str, Tensor]") -> None:
        """Adds tensors to the shard at hand, and writes it if it is large enough."""
        self._waiting |= tensors
        self.flush(self.size)

    def flush(self, at_least: int = 1) -> None:
        """Writes the shard at hand, if it has that many bytes, and forgets its tensors."""
        if sum(tensor.nbytes for tensor in self._waiting.values()) >= at_least:
            tensors = {name: tensor.contiguous() for name, tensor in self._waiting.items()}
            write_tensors(self._partial(len(self._shards)), tensors, {"format": "pt"})
            self._shards.append(list(tensors))
            self._total += sum(tensor.nbytes for tensor in tensors.values())
            self._waiting = {}

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is not None:
            return
        self.flush()
        count = len(self._shards)
        files = [f"model-{n + 1:05d}-of-{count:05d}.safetensors" for n in range(count)] if count > 1 else ["model.safetensors"]
        for n, file in enumerate(files):
            os.replace(self._partial(n), self.folder / file)
        if count > 1:
            weight_map = {name: file for file, names in zip(files, self._shards, strict=True) for name in names}
            index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
            write_text(self.folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")

    def _partial(self, number: int) -> Path:
        return self.folder / f"shard-{number}.safetensors"


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to fill, which gets its name when the block ends without an error and is removed otherwise.

    Raises:
        ValueError: something of that name exists.
    """
    path = Path(path)
    refuse_existing(path)
    with room_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = fresh_folder(path.with_name(path.name + ".partial"))
        try:
            yield partial
            same_permissions(partial)
            os.replace(partial, path)
        finally:
            remove(partial)
