"""A conversation with its pictures and videos: what a record is once it is read."""

from dataclasses import dataclass

from PIL import Image

IMAGE_MARK, VIDEO_MARK = "<image>", "<video>"


class BadRecordError(ValueError):
    """A record that cannot be trained on; the message names it."""


class DamagedShardError(BadRecordError):
    """A part of a stream that cannot be read on, so that no record of it can be left out; the message names it."""


def plain_error(error: BadRecordError) -> str:
    """An error's message; of one that a DataLoader's worker raised, without the traceback that torch puts before it."""
    return str(error).rpartition(f"{BadRecordError.__name__}: ")[2].strip().rstrip(".")


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        role: "system", "user" or "assistant".
        text: What is said, with "<image>" and "<video>" where they stand; in an answer these are words like others.
        thinking: The reasoning that an answer is given with.
        learned: Whether an answer has labels.
    """

    role: str
    text: str
    thinking: str = ""
    learned: bool = True


@dataclass(frozen=True, slots=True)
class Record:
    """One conversation with its pictures and videos.

    Attributes:
        where: Names the record in messages, such as "train.json, record 12 (id 'abc')"; the first record is 0.
        images: Absolute paths, or still undecoded pictures of a datasets column, in the order of their marks.
        turns: The conversation.
        videos: Absolute paths, in the order of their marks.
    """

    where: str
    images: tuple[str | Image.Image, ...]
    turns: tuple[Turn, ...]
    videos: tuple[str, ...] = ()
