"""Training records: read from any source, checked before training starts, without decoding a picture."""

import copy
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, overload

from PIL import Image

from evomoe.data.images import BadImageError, ImageFolder
from evomoe.data.kept import Keeper
from evomoe.data.record_content import content_of, row_digest
from evomoe.data.row import FIELDS, Picture, read_row
from evomoe.data.row_check import KEPT_FROM, RowCheck, RowOutcome
from evomoe.data.sources import Source, open_source
from evomoe.data.turns import IMAGE_MARK, BadRecordError, Record, Turn
from evomoe.recipe.options import OnBadRecord, PictureCheck, check_choice, check_on_bad_record
from evomoe.support.content import text_hash
from evomoe.support.names import check_folder
from evomoe.support.text import counted

if TYPE_CHECKING:
    import datasets

__all__ = ["IMAGE_MARK", "BadRecordError", "Record", "Records", "Turn", "bad_summary", "load_records"]

_LISTED = 10


class Records(Sequence[Record]):
    """The good records of a source. Each is built from its row when asked for, so pictures do not fill the memory.

    Args:
        source: Where the rows are.
        images: Where their pictures are.
        found: What their check has found.

    Attributes:
        skipped: The message of every record left out.
    """

    def __init__(self, source: Source, images: ImageFolder, found: RowOutcome) -> None:
        self._source, self._images, self._found = source, images, found
        count = len(source.rows)
        good = range(count)
        self._kept: Sequence[int] = [number for number in good if number not in found.bad] if found.bad else good
        self.skipped = [found.bad[number] for number in sorted(found.bad)]

    @property
    def notes(self) -> list[str]:
        """One about the fields that nobody reads, if there are such."""
        unread = self._found.unread + Counter({repr(column): len(self._kept) for column in self._source.unread})
        return [_unread_note(self.name, unread)] if unread else []

    @property
    def name(self) -> str:
        """What messages call the source."""
        return self._source.name

    @property
    def sizes(self) -> dict[tuple[str, bool], tuple[int, ...]]:
        """The height and width of each picture, in pixels, by its absolute path and False; of a video its frames too, by its path and True."""
        return {
            (os.path.join(self._images.folder, file.path), file.is_video): (
                (state.frames, state.height, state.width) if file.is_video else (state.height, state.width)
            )
            for file, state in self._found.pictures.items()
            if state is not None
        }

    @property
    def keeper(self) -> Keeper | None:
        """Keeps what is found out about these records; None for parts, for few, and for rows in memory."""
        return self._source.keeper if len(self._source.rows) >= KEPT_FROM else None

    @property
    def shown(self) -> str:
        """A hash of which rows are good, and of the sizes of their picture files."""
        files = sorted(self._found.pictures.items())
        sizes = "\0".join(f"{file.path} {file.is_video} {state[2:] if state else None}" for file, state in files)
        return text_hash([str(sorted(self._found.bad)), sizes])

    def content(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """What the rows and the picture files hold, good and bad ones, as ``content_of`` says it.

        Args:
            before: the content at another time.
        """
        digests = self._found.digests or b"".join(map(row_digest, self._source.rows))
        states = self._found.pictures.items()
        files = {
            os.path.join(self._images.folder, file.path): (state.size, state.date) if state else None for file, state in states
        }
        return content_of(digests, files, self.keeper, before)

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
            part._source = replace(self._source, keeper=None)
            return part
        number = self._kept[index]
        row = self._source.rows[number]
        name = self._source.where(number, row)
        try:
            turns, images, videos, _ = read_row(row)
            shown = tuple(_lazy_picture(image, self._images) for image in images)
            return Record(name, shown, turns, tuple(map(self._images.resolve, videos)))
        except (BadRecordError, BadImageError, OSError) as error:  # the files have changed since they were checked
            raise BadRecordError(f"{name}: {error}") from error


def load_records(
    data: "str | os.PathLike[str] | Sequence[Mapping[str, Any]] | datasets.Dataset | Source",
    image_root: str | os.PathLike[str] | None = None,
    on_bad_record: OnBadRecord = "stop",
    max_pixels: int | None = None,
    check_pictures: PictureCheck = "header",
    workers: int = 0,
) -> Records:
    """Opens training data and checks every record, without decoding the pictures.

    A record holds `conversations` (turns with from/value, as LLaVA writes them) or `messages` (turns with
    role/content, the content a text or a list of parts), its pictures in `image`, `images` or the parts, and its videos in `video`,
    `videos` or the parts. Fields that would change its meaning and are not read, such as `audio`, make it bad.

    Args:
        data: A .json or .jsonl file, a folder written by `datasets.save_to_disk`, the name of a hub dataset
            ("name:split"; the split is "train" unless named), a `datasets.Dataset` or a list of records; or what `open_source`
            made of one of these.
        image_root: The folder of the pictures; no path may leave it. Without it, relative paths start at the data
            file's folder (else at the current folder) and may not leave it; absolute paths may point anywhere.
        on_bad_record: "stop" raises after all records are checked; "skip" leaves bad records out and lists them.
        max_pixels: The largest picture allowed, in pixels; by default Pillow's limit against decompression bombs.
            Pillow itself refuses pictures of more than twice its limit.
        check_pictures: "header" looks at each picture's header and at whether its file is whole, and decodes it where its format cannot
            say; "decode" decodes every picture, which takes as long as a pass over the data.
        workers: The processes that check; 0 checks in this one.

    Raises:
        BadRecordError: There are bad records under "stop", or no good one at all.
        OptionError: An option has an unknown value.
        ValueError: The data cannot be opened.
    """
    check_on_bad_record(on_bad_record)
    check_choice("check_pictures", check_pictures, PictureCheck)
    if image_root is not None:
        check_folder("image_root", os.fspath(image_root))
    source = data if isinstance(data, Source) else open_source(data)
    images = _images(source, image_root)
    limit = (Image.MAX_IMAGE_PIXELS or 2**63) if max_pixels is None else max_pixels
    if not len(source.rows):
        raise BadRecordError(f"{source.name}: there are no records; name a file that has some.")
    found = RowCheck(source, images, limit, check_pictures == "decode").outcome(workers)
    records = Records(source, images, found)
    if found.bad and (on_bad_record == "stop" or not records):
        all_missing = 0 < len(found.missing) == len(found.pictures)
        remedy = f"Not one picture is in {images.folder}; is `image_root` right?" if all_missing else ""
        raise BadRecordError(bad_summary(source.name, records.skipped, len(source.rows), remedy))
    return records


def read_record(source: Source, image_root: str | None, max_pixels: int, check_pictures: PictureCheck) -> Record:
    """The record of a source of one row, checked as ``load_records`` checks all.

    Raises:
        BadRecordError: it is bad.
    """
    images = _images(source, image_root)
    found = RowCheck(source, images, max_pixels, check_pictures == "decode").rows([0])
    if found.bad:
        raise BadRecordError(found.bad[0])
    return Records(source, images, found)[0]


def _images(source: Source, image_root: str | os.PathLike[str] | None) -> ImageFolder:
    return ImageFolder(source.folder if image_root is None else image_root, image_root is None)


def _unread_note(name: str, unread: Counter[str]) -> str:
    """One sentence about all fields that nobody reads."""
    listed = []
    for field, count in unread.most_common(_LISTED):
        near = get_close_matches(field.rpartition("'s ")[2].strip("'"), FIELDS, 1, 0.8)
        listed.append(f"{field} ({counted(count, 'record')}{f'; is {near[0]!r} meant?' if near else ''})")
    more = f" and {len(unread) - _LISTED} more" if len(unread) > _LISTED else ""
    return f"{name}: fields that nobody reads: {', '.join(listed)}{more}."


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
    listed = "" if remedy else ", which a dry run with `on_bad_record=skip` lists"
    return "\n".join(
        [
            f"{name}: {len(bad):,} of {counted(total, 'record')} {'is' if len(bad) == 1 else 'are'} bad:",
            *(f"  {message}" for message in bad[:_LISTED]),
            *([f"  and {more:,} more{listed}"] if more > 0 else []),
            remedy or f"Repair {them}; training can leave {them} out: `on_bad_record=skip`.",
        ]
    )


def _lazy_picture(image: Picture, images: ImageFolder) -> str | Image.Image:
    if isinstance(image, bytes):
        return Image.open(io.BytesIO(image))
    return images.resolve(image) if isinstance(image, str) else image
