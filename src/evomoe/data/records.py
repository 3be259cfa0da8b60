"""Training records: read from any source, checked before training starts, without decoding a picture."""

import contextlib
import copy
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from PIL import Image
from tqdm import tqdm

from evomoe.data.images import BadImageError, ImageFolder, MissingImageError, check_image
from evomoe.data.row import FIELDS, Picture, read_row, value_of
from evomoe.data.sources import Source, open_source
from evomoe.data.turns import IMAGE_MARK, BadRecordError, Record, Turn
from evomoe.recipe.options import PictureCheck, check_choice, check_on_bad_record
from evomoe.support.names import check_folder
from evomoe.support.text import counted, shortened

if TYPE_CHECKING:
    import datasets

__all__ = ["IMAGE_MARK", "BadRecordError", "Record", "Records", "Turn", "bad_summary", "load_records"]

_LISTED = 10
_PROGRESS_FROM = 10_000


class Records(Sequence[Record]):
    """The good records of a source. Each is built from its row when asked for, so pictures do not fill the memory.

    Attributes:
        skipped: The message of every record left out.
        notes: The fields that nobody reads.
    """

    def __init__(
        self, source: Source, images: ImageFolder, kept: Sequence[int], skipped: list[str], notes: Sequence[str] = ()
    ) -> None:
        self.skipped, self.notes = skipped, list(notes)
        self._source = source
        self._images = images
        self._kept = kept

    @property
    def rows(self) -> Sequence[Any]:
        """All rows as they stand in the source, bad ones too."""
        return self._source.rows

    def picture_files(self) -> list[Path]:
        """The files that the rows name, each once, whether they are there or not."""
        found = set()
        for row in self.rows:
            with contextlib.suppress(BadRecordError, BadImageError):
                found |= {self._images.resolve(image) for image in read_row(row).images if isinstance(image, str)}
        return sorted(map(Path, found))

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
            turns, images, _ = read_row(row)
            return Record(where, tuple(_lazy_picture(image, self._images) for image in images), turns)
        except (BadRecordError, BadImageError, OSError) as error:  # the files have changed since they were checked
            raise BadRecordError(f"{where}: {error}") from error


def load_records(
    data: "str | os.PathLike[str] | Sequence[Mapping[str, Any]] | datasets.Dataset",
    image_root: str | os.PathLike[str] | None = None,
    on_bad_record: Literal["stop", "skip"] = "stop",
    max_pixels: int | None = None,
    check_pictures: PictureCheck = "header",
) -> Records:
    """Opens training data and checks every record, without decoding the pictures.

    A record holds `conversations` (turns with from/value, as LLaVA writes them) or `messages` (turns with
    role/content, the content a text or a list of text and image parts), and its pictures in `image`, `images` or the
    parts. Fields that would change its meaning and are not read, such as `video`, make it bad.

    Args:
        data: A .json or .jsonl file, a folder written by `datasets.save_to_disk`, the name of a hub dataset
            ("name:split"; the split is "train" unless named), a `datasets.Dataset` or a list of records.
        image_root: The folder of the pictures; no path may leave it. Without it, relative paths start at the data
            file's folder (else at the current folder) and may not leave it; absolute paths may point anywhere.
        on_bad_record: "stop" raises after all records are checked; "skip" leaves bad records out and lists them.
        max_pixels: The largest picture allowed, in pixels; by default Pillow's limit against decompression bombs.
            Pillow itself refuses pictures of more than twice its limit.
        check_pictures: "header" looks at each picture's header and at whether its file is whole, as far as its format says;
            "decode" decodes every picture, which takes as long as a pass over the data.

    Raises:
        BadRecordError: There are bad records under "stop", or no good one at all.
        OptionError: An option has an unknown value.
        ValueError: The data cannot be opened.
    """
    check_on_bad_record(on_bad_record)
    check_choice("check_pictures", check_pictures, PictureCheck)
    if image_root is not None:
        check_folder("image_root", os.fspath(image_root))
    source = open_source(data)
    images = ImageFolder(source.folder if image_root is None else image_root, image_root is None)
    limit = (Image.MAX_IMAGE_PIXELS or 2**63) if max_pixels is None else max_pixels
    check = _ImageCheck(images, limit, check_pictures == "decode")
    kept, bad, unread = [], [], Counter[str]()
    rows = tqdm(source.rows, f"checking {source.name}", unit="record", disable=len(source.rows) < _PROGRESS_FROM)
    for number, row in enumerate(rows):
        try:
            unread.update(_check_row(row, check))
            kept.append(number)
        except (BadRecordError, BadImageError) as error:
            bad.append(f"{_where(source.name, number, row)}: {error}")
    if not source.rows:
        raise BadRecordError(f"{source.name}: there are no records")
    if bad and (on_bad_record == "stop" or not kept):
        where = f"Not one picture is in {images.folder}; is `image_root` right?" if check.all_missing else ""
        raise BadRecordError(bad_summary(source.name, bad, len(source.rows), where))
    unread.update({repr(column): len(kept) for column in source.unread})
    return Records(source, images, kept, bad, [_unread_note(source.name, unread)] if unread else [])


def _unread_note(name: str, unread: Counter[str]) -> str:
    """One sentence about all fields that nobody reads."""
    listed = []
    for field, count in unread.most_common(_LISTED):
        near = get_close_matches(field.rpartition("'s ")[2].strip("'"), FIELDS, 1, 0.8)
        listed.append(f"{field} ({counted(count, 'record')}{f'; is {near[0]!r} meant?' if near else ''})")
    more = f" and {len(unread) - _LISTED} more" if len(unread) > _LISTED else ""
    return f"{name}: fields that nobody reads: {', '.join(listed)}{more}."


class _ImageCheck:
    """Checks each distinct picture file once."""

    def __init__(self, images: ImageFolder, max_pixels: int, decode: bool) -> None:
        self._images = images
        self._max_pixels, self._decode = max_pixels, decode
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
            check_image(image, self._max_pixels, self._decode)
        elif isinstance(image, Image.Image) and image.width * image.height > self._max_pixels:
            raise BadImageError(f"a picture has {image.width} x {image.height} pixels, more than {self._max_pixels:,}")

    def _verdict(self, path: str) -> str | None:
        try:
            check_image(self._images.resolve(path), self._max_pixels, self._decode)
        except BadImageError as error:
            self._missing += isinstance(error, MissingImageError)
            return str(error)
        return None


def _where(name: str, number: int, row: object) -> str:
    identity = value_of(row, "id") if isinstance(row, Mapping) else None
    return f"{name}, record {number}" + ("" if identity is None else f" (id {shortened(repr(identity))})")


def bad_summary(name: str, bad: Sequence[str], total: int, remedy: str = "") -> str:
    """One message for all bad records: how many, and the first of them.

    Args:
        name: What was checked.
        bad: A message for every bad record.
        total: How many records there are.
        remedy: What to do about it, if it is known better than "repair them".
    """
    reasons = {message.partition(": ")[2] for message in bad}
    if len(bad) == total > 1 and len(reasons) == 1:
        return f"{name}: all {counted(total, 'record')} are bad: {reasons.pop()}" + (f"\n{remedy}" if remedy else "")
    more, them = len(bad) - _LISTED, "it" if len(bad) == 1 else "them"
    return "\n".join(
        [
            f"{name}: {len(bad):,} of {counted(total, 'record')} {'is' if len(bad) == 1 else 'are'} bad:",
            *(f"  {message}" for message in bad[:_LISTED]),
            *([f"  and {more:,} more"] if more > 0 else []),
            remedy or f"Repair {them}; training can leave {them} out: `on_bad_record=skip`.",
        ]
    )


def _check_row(row: object, check_picture: _ImageCheck) -> list[str]:
    """Raises BadRecordError or BadImageError for a row that cannot be learned; returns the names of fields that nobody reads."""
    turns, images, unread = read_row(row)
    spoken = [turn.role for turn in turns if turn.role != "system"]
    if "assistant" not in spoken:
        raise BadRecordError("there is no assistant turn, so there is nothing to learn")
    if not any(turn.learned for turn in turns if turn.role == "assistant"):
        raise BadRecordError("none of its answers is to be learned, so there is nothing to learn")
    if spoken[0] == "assistant":
        raise BadRecordError("the assistant speaks first; a user turn must come before its first answer")
    for number, turn in enumerate(turns):
        if turn.role == "assistant" and not turn.text.strip():
            raise BadRecordError(f"turn {number} is the assistant's and is empty")
    for image in images:
        check_picture(image)
    return unread


def _lazy_picture(image: Picture, images: ImageFolder) -> str | Image.Image:
    if isinstance(image, bytes):
        return Image.open(io.BytesIO(image))
    return images.resolve(image) if isinstance(image, str) else image
