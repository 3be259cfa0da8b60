"""Writing files and folders so that what has the right name is whole."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file under a temporary name first."""
    partial = Path(path).with_name(Path(path).name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file under a temporary name first."""
    from safetensors.torch import save_file

    partial = path.with_name(path.name + ".partial")
    save_file(dict(tensors), partial, metadata=dict(metadata or {}))
    os.replace(partial, path)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill, which gets its name when the block ends without an error and is removed otherwise.

    Raises:
        ValueError: something of that name exists.
    """
    path = Path(path)
    if path.exists():
        raise ValueError(f"{path} exists already; name another folder.")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
