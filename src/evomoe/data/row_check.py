"""The check of every row of a source: can it be learned, and are its pictures sound? No picture is decoded for it."""

import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from evomoe.data.images import BadImageError, ImageFolder, MissingImageError, check_image, open_rgb
from evomoe.data.kept import Found
from evomoe.data.pixels import FLOAT
from evomoe.data.record_content import row_digest
from evomoe.data.row import read_row
from evomoe.data.sources import Source
from evomoe.data.turns import BadRecordError
from evomoe.data.videos import check_video
from evomoe.support.text import shows_nothing
from evomoe.support.workers import mapped

PROGRESS_FROM = 10_000
"""Records from which on a check shows how far it is."""
AT_ONCE = 1_000
"""Records that a worker takes at once."""
KEPT_FROM = 1_000
"""Records from which on a check's outcome is kept: fewer are checked in a second."""
_ASKING = 16
"""Threads that ask for the states of files, which on a network's disk means to wait."""


class PictureState(NamedTuple):
    """What is known of a picture's file.

    Attributes:
        size: in bytes.
        date: when it was changed, in nanoseconds.
        height, width: in pixels.
        frames: how many a video has; 0 for a picture.
    """

    size: int
    date: int
    height: int
    width: int
    frames: int = 0


class MediaFile(NamedTuple):
    """A picture's or a video's file: its path in the image folder, or the absolute one of a file elsewhere."""

    path: str
    is_video: bool = False


@dataclass
class RowOutcome:
    """What the check of rows has found.

    Attributes:
        bad: why a row cannot be learned, by its number.
        unread: the fields that nobody reads, and how many rows have them.
        pictures: the files of pictures and videos that rows name. None: not usable.
        missing: those of them that do not exist.
        digests: 16 bytes for each row; empty where rows are in memory.
    """

    bad: dict[int, str] = field(default_factory=dict)
    unread: Counter[str] = field(default_factory=Counter)
    pictures: dict[MediaFile, PictureState | None] = field(default_factory=dict)
    missing: set[MediaFile] = field(default_factory=set)
    digests: bytes = b""

    def add(self, other: "RowOutcome") -> None:
        """Takes over what was found in the rows that follow."""
        self.bad |= other.bad
        self.unread += other.unread
        self.pictures |= other.pictures
        self.missing |= other.missing
        self.digests += other.digests

    def kept(self) -> Found:
        """What holds another time too. Rows that are bad are looked at each time, for what their messages name may change."""
        good = {file: state for file, state in self.pictures.items() if state is not None}
        arrays = {
            "bad": np.array(sorted(self.bad), np.int64),
            "digests": np.frombuffer(self.digests, np.uint8),
            "paths": np.frombuffer(b"\0".join(os.fsencode(file.path) for file in good), np.uint8),
            "states_P5": np.array([*good.values()], np.int64).reshape(-1, 5),
        }
        return Found(arrays, {"unread": dict(self.unread)})


class RowCheck:
    """Checks rows of a source.

    Args:
        source: their source.
        images: where their pictures lie.
        max_pixels: the largest picture allowed.
        decode: whether pictures are decoded.
    """

    def __init__(self, source: Source, images: ImageFolder, max_pixels: int, decode: bool) -> None:
        self._source, self._images = source, images
        self._max_pixels, self._decode = max_pixels, decode
        self._known: dict[MediaFile, PictureState | BadImageError] = {}

    def outcome(self, workers: int) -> RowOutcome:
        """What is found in the rows, taken from what was kept as far as it holds."""
        keeper, count = self._source.keeper, len(self._source.rows)
        if keeper is None or count < KEPT_FROM:
            return self._all(workers)
        options = {
            "max_pixels": self._max_pixels, "decode": self._decode, "absolute": self._images.allow_absolute_outside,
            "unread": self._source.unread, "count": count, "Pillow": Image.__version__,
        }  # fmt: skip
        return keeper.outcome(
            "rows",
            options,
            make=lambda before: self._renewed(before) or self._all(workers),
            write=RowOutcome.kept,
            read=self._still,
        )

    def _all(self, workers: int) -> RowOutcome:
        found, count = RowOutcome(), len(self._source.rows)
        chunks = [range(start, min(start + AT_ONCE, count)) for start in range(0, count, AT_ONCE)]
        with tqdm(total=count, desc=f"checking {self._source.name}", unit="record", disable=count < PROGRESS_FROM) as progress:
            for chunk, one in zip(chunks, mapped(self.rows, chunks, workers), strict=True):
                found.add(one)
                progress.update(len(chunk))
        return found

    def rows(self, numbers: Iterable[int]) -> RowOutcome:
        """What is found in some rows."""
        numbers, found, digests = [*numbers], RowOutcome(), []
        for number, row in zip(numbers, self._source.some(numbers), strict=True):
            if self._source.keeper is not None:
                digests.append(row_digest(row))
            try:
                found.unread.update(self._check(row, found))
            except (BadRecordError, BadImageError) as error:
                found.bad[number] = f"{self._source.where(number, row)}: {error}"
        found.digests = b"".join(digests)
        return found

    def _still(self, kept: Found) -> RowOutcome | None:
        """What was kept, if all pictures are what they were."""
        files, states = _pictures(kept)
        with ThreadPoolExecutor(_ASKING) as pool:
            blocks = [range(start, min(start + AT_ONCE, len(files))) for start in range(0, len(files), AT_ONCE)]
            if not all(pool.map(lambda block: all(self._state(files[n]) == states[n][:2] for n in block), blocks)):
                return None
        return self._with_bad_rows(kept, dict(zip(files, states, strict=True)))

    def _renewed(self, before: Found | None) -> RowOutcome | None:
        """What was kept, if those pictures that are others now are sound too."""
        if before is None:
            return None
        pictures: dict[MediaFile, PictureState] = {}
        for file, state in zip(*_pictures(before), strict=True):
            try:
                pictures[file] = state if self._state(file) == state[:2] else self._look(file)
            except BadImageError:
                return None
        return self._with_bad_rows(before, pictures)

    def _with_bad_rows(self, kept: Found, pictures: dict[MediaFile, PictureState]) -> RowOutcome:
        again = self.rows(kept.arrays["bad"].tolist())
        return RowOutcome(
            again.bad,
            Counter(kept.facts["unread"]) + again.unread,
            {**again.pictures, **pictures},
            again.missing,
            kept.arrays["digests"].tobytes(),
        )

    def _check(self, row: object, found: RowOutcome) -> list[str]:
        """Raises BadRecordError or BadImageError for a row that cannot be learned; returns the names of fields that nobody reads."""
        turns, images, videos, unread = read_row(row)
        files = [MediaFile(self._images.within(image)) if isinstance(image, str) else None for image in images]
        files += [MediaFile(self._images.within(video), True) for video in videos]
        for file in files:
            if file is not None:
                self._note(file, found)
        spoken = [turn.role for turn in turns if turn.role != "system"]
        if "assistant" not in spoken:
            raise BadRecordError("there is no assistant turn, so there is nothing to learn")
        if not any(turn.learned for turn in turns if turn.role == "assistant"):
            raise BadRecordError("none of its answers is to be learned, so there is nothing to learn")
        if spoken[0] == "assistant":
            raise BadRecordError("the assistant speaks first; a user turn must come before its first answer")
        if spoken[-1] != "assistant":
            raise BadRecordError("its last turn is the user's, which nothing answers")
        for number, turn in enumerate(turns):
            if turn.role == "assistant" and shows_nothing(turn.text):
                unseen = ", ".join(sorted({f"U+{ord(sign):04X}" for sign in turn.text if not sign.isspace()}))
                raise BadRecordError(
                    f"turn {number} is the assistant's and " + (f"shows nothing: it has {unseen} alone" if unseen else "is empty")
                )
        for file, shown in zip(files, [*images, *videos], strict=True):
            self._check_picture(file, shown)
        return unread

    def _check_picture(self, file: MediaFile | None, image: Any) -> None:
        if file is not None:
            if isinstance(verdict := self._known[file], BadImageError):
                raise verdict
        elif isinstance(image, bytes):
            check_image(image, self._max_pixels, self._decode)
        elif isinstance(image, Image.Image) and image.width * image.height > self._max_pixels:
            raise BadImageError(f"a picture has {image.width} x {image.height} pixels, more than {self._max_pixels:,}")
        elif isinstance(image, Image.Image) and image.mode == FLOAT:
            open_rgb(image)

    def _note(self, file: MediaFile, found: RowOutcome) -> None:
        """Looks at a file, once."""
        if file not in self._known:
            try:
                self._known[file] = self._look(file)
            except BadImageError as error:
                self._known[file] = error
        verdict = self._known[file]
        found.pictures[file] = verdict if isinstance(verdict, PictureState) else None
        if isinstance(verdict, MissingImageError):
            found.missing.add(file)

    def _look(self, file: MediaFile) -> PictureState:
        size, date = self._state(file)  # before it is opened: what is changed meanwhile is looked at again next time
        path = os.path.join(self._images.folder, file.path)
        if file.is_video:
            frames, height, width = check_video(path, self._max_pixels, self._decode)
            return PictureState(size, date, height, width, frames)
        width, height = check_image(path, self._max_pixels, self._decode)
        return PictureState(size, date, height, width)

    def _state(self, file: MediaFile) -> tuple[int, int]:
        try:
            state = os.stat(os.path.join(self._images.folder, file.path))
        except OSError:
            return -1, -1
        return state.st_size, state.st_mtime_ns


def _pictures(kept: Found) -> tuple[list[MediaFile], list[PictureState]]:
    joined, states_P5 = os.fsdecode(kept.arrays["paths"].tobytes()), kept.arrays["states_P5"]
    paths = joined.split("\0") if joined else []
    files = map(MediaFile, paths, (states_P5[:, 4] > 0).tolist())
    return [*files], [*map(PictureState, *states_P5.T.tolist())]
