"""Training records: read from any source, checked before training starts, without decoding a picture."""

import copy
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

from PIL import Image
from tqdm import tqdm

from evomoe.data.images import BadImageError, ImageFolder, MissingImageError, check_image
from evomoe.data.sources import Source, open_source
from evomoe.recipe.options import check_on_bad_record
from evomoe.support.names import check_folder
from evomoe.support.text import counted, kind_of

if TYPE_CHECKING:
    import datasets

IMAGE_MARK = "<image>"

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_LISTED = 10
_PROGRESS_FROM = 10_000


class BadRecordError(ValueError):
    """A record that cannot be trained on; the message names it."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        role: "system", "user" or "assistant".
        text: What is said, with "<image>" where the pictures stand; in an answer it is a word like others.
        thinking: The reasoning that an answer is given with.
        learned: Whether an answer has labels.
    """

    role: str
    text: str
    thinking: str = ""
    learned: bool = True


@dataclass(frozen=True, slots=True)
class Record:
    """One conversation with its pictures.

    Attributes:
        where: Names the record in messages, such as "train.json, record 12 (id 'abc')"; the first record is 0.
        images: Absolute paths, or still undecoded pictures of a datasets column, in the order of their marks.
        turns: The conversation.
    """

    where: str
    images: tuple[str | Image.Image, ...]
    turns: tuple[Turn, ...]


class Records(Sequence[Record]):
    """The good records of a source. Each is built from its row when asked for, so pictures do not fill the memory.

    Attributes:
        skipped: The message of every record left out.
    """

    def __init__(self, source: Source, images: ImageFolder, kept: Sequence[int], skipped: list[str]) -> None:
        self.skipped = skipped
        self._source = source
        self._images = images
        self._kept = kept

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> "Records": ...
    def __getitem__(self, index: int | slice) -> "Record | Records":
        if isinstance(index, slice):
            part = copy.copy(self)
            part._kept = self._kept[index]
            return part
        number = self._kept[index]
        row = self._source.rows[number]
        where = _where(self._source.name, number, row)
        try:
            images = tuple(_lazy_picture(image, self._images) for image in _images_of(row))
        except BadImageError as error:  # the files have changed since they were checked
            raise BadRecordError(f"{where}: {error}") from error
        return Record(where, images, _turns_of(row))


def load_records(
    data: "str | os.PathLike[str] | Sequence[Mapping[str, Any]] | datasets.Dataset",
    image_root: str | os.PathLike[str] | None = None,
    on_bad_record: Literal["stop", "skip"] = "stop",
    max_pixels: int | None = None,
) -> Records:
    """Opens training data and checks every record, without decoding the pictures.

    A record holds `conversations` (turns with from/value, as LLaVA writes them) or `messages` (turns with
    role/content, the content a text or a list of text and image parts), and its pictures in `image` or `images`.

    Args:
        data: A .json or .jsonl file, a folder written by `datasets.save_to_disk`, the name of a hub dataset
            ("name:split"; the split is "train" unless named), a `datasets.Dataset` or a list of records.
        image_root: The folder of the pictures; no path may leave it. Without it, relative paths start at the data
            file's folder (else at the current folder) and may not leave it; absolute paths may point anywhere.
        on_bad_record: "stop" raises after all records are checked; "skip" leaves bad records out and lists them.
        max_pixels: The largest picture allowed, in pixels; by default Pillow's limit against decompression bombs.
            Pillow itself refuses pictures of more than twice its limit.

    Raises:
        BadRecordError: There are bad records under "stop", or no good one at all.
        OptionError: An option has an unknown value.
        ValueError: The data cannot be opened.
    """
    check_on_bad_record(on_bad_record)
    if image_root is not None:
        check_folder("image_root", os.fspath(image_root))
    source = open_source(data)
    images = ImageFolder(source.folder if image_root is None else image_root, image_root is None)
    check = _ImageCheck(images, (Image.MAX_IMAGE_PIXELS or 2**63) if max_pixels is None else max_pixels)
    kept, bad = [], []
    rows = tqdm(source.rows, f"checking {source.name}", unit="record", disable=len(source.rows) < _PROGRESS_FROM)
    for number, row in enumerate(rows):
        try:
            _check_row(row, check)
            kept.append(number)
        except (BadRecordError, BadImageError) as error:
            bad.append(f"{_where(source.name, number, row)}: {error}")
    if not source.rows:
        raise BadRecordError(f"{source.name}: there are no records")
    if bad and (on_bad_record == "stop" or not kept):
        where = f"Not one picture is in {images.folder}; is `image_root` right?" if check.all_missing else ""
        raise BadRecordError(bad_summary(source.name, bad, len(source.rows), where))
    return Records(source, images, kept, bad)


class _ImageCheck:
    """Checks each distinct picture file once."""

    def __init__(self, images: ImageFolder, max_pixels: int) -> None:
        self._images = images
        self._max_pixels = max_pixels
        self._verdicts: dict[str, str | None] = {}
        self._missing = 0

    @property
    def all_missing(self) -> bool:
        """Whether there were picture files to check and not one of them exists."""
        return 0 < self._missing == len(self._verdicts)

    def __call__(self, image: object) -> None:
        if isinstance(image, str):
            if image not in self._verdicts:
                self._verdicts[image] = self._verdict(image)
            if (verdict := self._verdicts[image]) is not None:
                raise BadImageError(verdict)
        elif isinstance(image, bytes):
            check_image(image, self._max_pixels)
        elif isinstance(image, Image.Image) and image.width * image.height > self._max_pixels:
            raise BadImageError(f"a picture has {image.width} x {image.height} pixels, more than {self._max_pixels:,}")

    def _verdict(self, path: str) -> str | None:
        try:
            check_image(self._images.resolve(path), self._max_pixels)
        except BadImageError as error:
            self._missing += isinstance(error, MissingImageError)
            return str(error)
        return None


def _where(name: str, number: int, row: object) -> str:
    identity = row.get("id") if isinstance(row, Mapping) else None
    return f"{name}, record {number}" + ("" if identity is None else f" (id {identity!r})")


def bad_summary(name: str, bad: Sequence[str], total: int, remedy: str = "") -> str:
    """One message for all bad records: how many, and the first of them.

    Args:
        name: What was checked.
        bad: A message for every bad record.
        total: How many records there are.
        remedy: What to do about it, if it is known better than "repair them".
    """
    more, them = len(bad) - _LISTED, "it" if len(bad) == 1 else "them"
    return "\n".join(
        [
            f"{name}: {len(bad):,} of {counted(total, 'record')} {'is' if len(bad) == 1 else 'are'} bad:",
            *(f"  {message}" for message in bad[:_LISTED]),
            *([f"  and {more:,} more"] if more > 0 else []),
            remedy or f"Repair {them}; training can leave {them} out: `on_bad_record=skip`.",
        ]
    )


def _check_row(row: object, check_picture: _ImageCheck) -> None:
    if not isinstance(row, Mapping):
        raise BadRecordError(f"a record must be an object with named fields, not {kind_of(row)}")
    turns = _turns_of(row)
    images = _images_of(row)
    spoken = [turn.role for turn in turns if turn.role != "system"]
    if "assistant" not in spoken:
        raise BadRecordError("there is no assistant turn, so there is nothing to learn")
    if spoken[0] == "assistant":
        raise BadRecordError("the assistant speaks first; a user turn must come before its first answer")
    for number, turn in enumerate(turns):
        if turn.role == "assistant" and IMAGE_MARK in turn.text:
            raise BadRecordError(f"turn {number} is the assistant's and holds {IMAGE_MARK}; only others show pictures")
        if turn.role == "assistant" and not turn.text.strip():
            raise BadRecordError(f"turn {number} is the assistant's and is empty")
    marks = sum(turn.text.count(IMAGE_MARK) for turn in turns)
    if marks != len(images):
        raise BadRecordError(f"the text has {marks} {IMAGE_MARK} but the record has {counted(len(images), 'image')}")
    for image in images:
        check_picture(image)


def _turns_of(row: Mapping[str, Any]) -> tuple[Turn, ...]:
    fields = [field for field in ("conversations", "messages") if row.get(field) is not None]
    if len(fields) != 1:
        found = "both" if fields else "neither"
        raise BadRecordError(f"a record needs one of 'conversations' and 'messages'; this one has {found}")
    turns = row[fields[0]]
    if not isinstance(turns, list):
        raise BadRecordError(f"'{fields[0]}' must be a list of turns, not {kind_of(turns)}")
    if not turns:
        raise BadRecordError("the conversation is empty")
    return tuple(_turn(number, turn) for number, turn in enumerate(turns))


def _turn(number: int, turn: object) -> Turn:
    if not isinstance(turn, Mapping):
        raise BadRecordError(f"turn {number} must have from/value or role/content; it is {kind_of(turn)}")
    role, content = (turn.get(new, turn.get(old)) for new, old in (("role", "from"), ("content", "value")))
    if not isinstance(role, str) or role not in _ROLES:
        raise BadRecordError(f"turn {number} has the unknown role {role!r}; known are {', '.join(_ROLES)}")
    if isinstance(content, list):
        content = "".join(_part_text(number, part) for part in content)
    if not isinstance(content, str):
        raise BadRecordError(f"the text of turn {number} must be a string, not {kind_of(content)}")
    return Turn(_ROLES[role], content)


def _part_text(number: int, part: object) -> str:
    if isinstance(part, Mapping):
        if part.get("type") == "image":
            return IMAGE_MARK
        if part.get("type") == "text" and isinstance(text := part.get("text"), str):
            return text
    raise BadRecordError(f"turn {number} has a part that is neither a text nor an image: {str(part)[:80]}")


def _images_of(row: Mapping[str, Any]) -> list[str | bytes | Image.Image]:
    fields = [field for field in ("image", "images") if row.get(field) not in (None, "", [])]
    if len(fields) > 1:
        raise BadRecordError("a record has its pictures in 'image' or in 'images', not in both")
    if not fields:
        return []
    images = row[fields[0]]
    return [_picture(image) for image in (images if isinstance(images, list) else [images])]


def _picture(image: object) -> str | bytes | Image.Image:
    if isinstance(image, Mapping):  # an undecoded cell of a datasets image column
        image = image.get("bytes") or image.get("path")
    if not isinstance(image, str | bytes | Image.Image) or not image:
        raise BadRecordError(f"an image must be a path or a picture, not {kind_of(image)}")
    return image


def _lazy_picture(image: str | bytes | Image.Image, images: ImageFolder) -> str | Image.Image:
    if isinstance(image, bytes):
        return Image.open(io.BytesIO(image))
    return images.resolve(image) if isinstance(image, str) else image
