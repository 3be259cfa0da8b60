"""Which data a run or a stage trains on: one source or several, each with a weight and a folder of pictures.

A weight says how often a source's records are taken in one pass: 2 takes each twice, 0.5 half of them, and the next pass the other half.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from tyro.constructors import PrimitiveConstructorSpec

from evomoe.support.errors import OptionError
from evomoe.support.text import counted

LEAST, MOST = 1e-6, 1000.0
"""Weights beyond are mistakes: a pass would take no record of that source, or as many passes over it."""
_FILES = (".json", ".jsonl", ".tar", ".parquet")


class DataSource(NamedTuple):
    """One source.

    Attributes:
        name: a file, a folder or a dataset of the hub, perhaps with ":split".
        weight: how often its records are taken in a pass.
        image_root: the folder of its pictures; None if they lie beside it, or in it.
    """

    name: str
    weight: float = 1.0
    image_root: str | None = None

    @property
    def place(self) -> tuple[str, str | None]:
        """Where its records and pictures are, whatever the weight."""
        return self.name, self.image_root


def single(option: str, value: Any) -> Any:
    """A list of one as that one: a run on one source is the same however it is written.

    Raises:
        OptionError: the list is empty.
    """
    if value == ():
        raise OptionError(option, "there is none; name at least one.")
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value


def parse_source(text: str, option: str) -> tuple[str, float]:
    """ "a.json:0.5" -> "a.json", 0.5; "name:split" and whatever is there by that name as they stand, with 1.

    Raises:
        OptionError: what stands behind the name is no weight.
    """
    name, colon, last = text.rpartition(":")
    if not colon or os.path.exists(text):
        return text, 1.0
    try:
        weight = float(last)
    except ValueError:
        is_split = not name.endswith(_FILES) and (":" not in Path(name).name or os.path.exists(name))
        if is_split or text.endswith(_FILES):
            return text, 1.0
        raise OptionError(option, f"{text}: '{last}' is not a weight. Write a number, such as {name}:0.5.") from None
    if not LEAST <= weight <= MOST:  # false for nan
        raise OptionError(option, f"{text}: the weight must be a number from {LEAST:g} to {MOST:g}.")
    return name, weight


def data_sources(
    data: str | Sequence[str], image_root: str | Sequence[str | None] | None, option: str = "data", of_roots: str = "image_root"
) -> tuple[DataSource, ...]:
    """The sources that the options name.

    Args:
        data: one or several, each perhaps with ":weight".
        image_root: one folder for all, or one for each.
        option, of_roots: what the two options are called.

    Raises:
        OptionError: a name is empty or stands there twice, a weight is wrong, or there are more or fewer folders than sources.
    """
    texts = (data,) if isinstance(data, str) else tuple(data)
    if not all(texts):
        raise OptionError(option, "a name is empty.")
    if address := next((text for text in texts if "://" in text), None):
        raise OptionError(
            option,
            f"{address}: addresses are not read. Mount the bucket as a folder, fetch the files, or name a dataset of the hub.",
        )
    roots = (image_root,) * len(texts) if image_root is None or isinstance(image_root, str) else tuple(image_root)
    if len(roots) != len(texts):
        raise OptionError(
            of_roots,
            f"it has {counted(len(roots), 'folder')} for {counted(len(texts), 'source')}. Give one for all, or one for each: '' for a "
            "source that needs none.",
        )
    found = [DataSource(*parse_source(text, option), root or None) for text, root in zip(texts, roots, strict=True)]
    names = [source.name for source in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise OptionError(option, f"{twice} stands there twice; give it a weight instead: {twice}:2.")
    return tuple(found)


def data_title(data: str | Sequence[str]) -> str:
    """Data in words: all sources with their weights."""
    return data if isinstance(data, str) else ", ".join(data)


def data_names(data: str | Sequence[str]) -> list[str]:
    """The last part of each source's name, without weights."""
    return [Path(source.name).name for source in data_sources(data, None)]


def _words(items: Sequence[str]) -> Any:
    return items[0] if len(items) == 1 else tuple(items)


def _spec(metavar: str) -> PrimitiveConstructorSpec:
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=metavar,
        instance_from_str=_words,
        is_instance=lambda value: isinstance(value, str | tuple | None),
        str_from_instance=lambda value: [str(value)] if value is None or isinstance(value, str) else [repr(one) for one in value],
    )


DataNames = Annotated[str | tuple[str, ...], _spec("NAME[:WEIGHT] ...")]
OwnDataNames = Annotated[str | tuple[str, ...] | None, _spec("NAME[:WEIGHT] ...")]
Folders = Annotated[str | tuple[str | None, ...] | None, _spec("FOLDER [FOLDER ...]")]
