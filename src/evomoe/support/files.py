"""Writing files and folders so that what has the right name is whole."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from evomoe.support.names import refuse_existing

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def naming(path: str | Path, advice: str) -> Iterator[None]:
    """Lets the error of a disk that is full, or closed to us, name the file and say what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path}: {error.strerror or error}. {advice}") from error


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file under a temporary name first.

    Raises:
        OSError: it cannot be written; what had its name before is still there.
    """
    partial = Path(path).with_name(Path(path).name + ".partial")
    with naming(path, "It was not written: make room, or name another place, and start the same command again."):
        try:
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, path)
        except OSError:
            with suppress(OSError):  # there may be none
                partial.unlink()
            raise


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file under a temporary name first."""
    from safetensors.torch import save_file

    partial = path.with_name(path.name + ".partial")
    save_file(dict(tensors), partial, metadata=dict(metadata or {}))
    os.replace(partial, path)


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
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
