"""What files hold, as short hashes: whether two are the same, wherever they lie and however old they are."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from evomoe.support.names import own_files, refuse_special

_LENGTH = 32
_MODEL_FILES = {
    ".safetensors",
    ".bin",
    ".gguf",
    ".json",
    ".jinja",
    ".model",
    ".txt",
    ".py",
    ".tiktoken",
    ".spm",
    ".bpe",
    ".vocab",
}
_FURTHER_TEMPLATES = "additional_chat_templates/*.jinja"
"""Where transformers saves all chat templates but the first."""


def file_hash(path: str | Path) -> str:
    """A hash of a file's content."""
    refuse_special(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:_LENGTH]


def text_hash(parts: Iterable[str]) -> str:
    """One hash of many texts."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.encode("utf-8", "surrogatepass") + b"\0")
    return total.hexdigest()


def fingerprint(model: str | Path) -> dict[str, str]:
    """Hashes of the files of a model's folder that its answers depend on: weights, configuration, processor.

    The whole files count, not their dates, so that a copied folder is the same model and an overwritten one is another.
    A model of the hub is named by its commit.
    """
    if not Path(model).is_dir():
        from transformers.utils.hub import cached_file, extract_commit_hash

        file = cached_file(str(model), "config.json")
        return {"hub": str(model), "commit": str(extract_commit_hash(file, None))}
    return {path.relative_to(model).as_posix(): file_hash(path) for path in model_files(Path(model))}


def model_files(folder: Path) -> list[Path]:
    """The files of a model's folder that its answers depend on."""
    return [path for path in own_files(folder, "*") if path.suffix in _MODEL_FILES] + own_files(folder, _FURTHER_TEMPLATES)
