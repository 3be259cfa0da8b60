"""Samples of webdataset shards as rows: the files of a tar that share a name, such as 0001.json and 0001.jpg.

The webdataset builder of ``datasets`` reads such shards too, but refuses those in which some samples have a picture and others have
none, as LLaVA's data have them.
"""

import itertools
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evomoe.data.row import CONVERSATION, PICTURES
from evomoe.data.turns import IMAGE_MARK, BadRecordError
from evomoe.support.errors import foreign
from evomoe.support.parse_json import parse_json

KEY, URL = "__key__", "__url__"
"""What a sample is called, and which shard it is of, among the fields of a sample."""
_OF_PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
_OF_OTHER_MEDIA = ("mp4", "avi", "mov", "mkv", "webm", "wav", "mp3", "flac", "ogg", "m4a")


def rows_of_tar(path: Path, start: int) -> Iterator[dict[str, Any] | BadRecordError]:
    """The rows of a shard from a number on, those before it unread; in the place of one that cannot be made, why not.

    Raises:
        ValueError: the file is no tar, or a damaged one.
    """
    try:
        with tarfile.open(path) as tar:
            for number, (key, members) in enumerate(itertools.groupby(_files(tar), lambda member: _name(member)[0])):
                if number < start:
                    continue
                sample = {_name(member)[1]: file.read() for member in members if (file := tar.extractfile(member))}
                yield row_of_sample({KEY: key, **sample})
            _check_end(tar, path)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no tar, or it is damaged: {foreign(error)}") from error


def _check_end(tar: tarfile.TarFile, path: Path) -> None:
    """Raises ValueError unless nothing but the end mark follows: tarfile stops without a word where a header is damaged."""
    file: Any = tar.fileobj
    file.seek(tar.offset)
    mark = file.read(2 * tarfile.BLOCKSIZE)
    if (
        len(mark) < 2 * tarfile.BLOCKSIZE
        or mark.strip(b"\0")
        or any(rest.strip(b"\0") for rest in iter(lambda: file.read(2**20), b""))
    ):
        raise ValueError(f"{path} is damaged or was cut after {tar.offset:,} bytes: there a file or the end mark should begin")


def row_of_sample(sample: Mapping[str, Any]) -> dict[str, Any] | BadRecordError:
    """The row that a sample makes, or why it makes none.

    Its .json is the record, and its pictures stand in the place of those that the record names. A .txt is what is to be said of the
    picture.

    Args:
        sample: what its files hold, by their names after the first dot; its own name as ``__key__``.
    """
    try:
        return _row(sample)
    except (ValueError, RecursionError) as error:
        return error if isinstance(error, BadRecordError) else BadRecordError(f"sample {sample[KEY]!r}: {foreign(error)}")


def _row(sample: Mapping[str, Any]) -> dict[str, Any]:
    files = {field: value for field, value in sample.items() if field not in (KEY, URL) and value is not None}
    kinds = {field: field.rpartition(".")[2].lower() for field in files}
    shown = {field: files.pop(field) for field in sorted(kinds, key=_in_natural_order) if kinds[field] in _OF_PICTURES}
    if media := [field for field in files if kinds[field] in _OF_OTHER_MEDIA]:
        raise BadRecordError(f"sample {sample[KEY]!r} has a .{media[0]}; of a tar, words and pictures are learned, nothing else")
    record, text = _record(files.pop("json", None), str(sample[KEY])), files.pop("txt", None)
    pictures = _pictures(shown, record, str(sample[KEY]))
    if any(record.get(field) is not None for field in CONVERSATION):
        row = files | record
    elif text is not None and pictures:
        said = text.decode() if isinstance(text, bytes) else str(text)
        asked = {"role": "user", "content": IMAGE_MARK * len(pictures)}
        row = {"messages": [asked, {"role": "assistant", "content": said.strip()}], **files}
    else:
        raise BadRecordError(f"sample {sample[KEY]!r} has no .json with a conversation, and no .txt with a picture")
    if pictures:
        row = {field: value for field, value in row.items() if field not in PICTURES} | {"images": pictures}
    return {"id": sample[KEY]} | row


def _in_natural_order(name: str) -> list[tuple[bool, int, str]]:
    """Sorts 2.jpg before 10.jpg."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]


def _pictures(shown: Mapping[str, bytes], record: Mapping[str, Any], key: str) -> list[bytes]:
    """A sample's pictures, as the record names them; where it names other files, in the order of their own names."""
    there = {f"{os.path.basename(key)}.{field}": picture for field, picture in shown.items()}
    values = [value for field in PICTURES if (value := record.get(field)) is not None]
    named = [
        os.path.basename(name)
        for value in values
        for name in (value if isinstance(value, list) else [value])
        if isinstance(name, str)
    ]
    if there.keys() & {*named}:
        if {*named} != there.keys():
            raise BadRecordError(f"sample {key!r} has {', '.join(there)}, and its .json names {', '.join(named)}")
        return [there[name] for name in named]
    return [*shown.values()]


def _record(value: Any, key: str) -> dict[str, Any]:
    record = parse_json(value.decode("utf-8-sig"), f"sample {key!r}") if isinstance(value, bytes) else value
    if record is not None and not isinstance(record, Mapping):
        raise BadRecordError(f"sample {key!r}: its .json must hold an object")
    return dict(record or {})


def _files(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in tar:
        tar.members = []  # pyrefly: ignore[missing-attribute]: it would keep all that it has seen
        if member.islnk() or member.issym():
            raise ValueError(f"{member.name} is a link; write the tar with --hard-dereference --dereference")
        if member.isfile() and not os.path.basename(member.name).startswith("."):
            yield member


def _name(member: tarfile.TarInfo) -> tuple[str, str]:
    """What a file's sample is called, and the rest of the file's name."""
    folder, name = os.path.split(member.name)
    key, _, rest = name.partition(".")
    return os.path.join(folder, key), rest
