"""Turns as the messages that chat templates take."""

import re
from collections.abc import Iterator
from typing import Any

from evomoe.data.marks import Marks
from evomoe.data.turns import IMAGE_MARK, VIDEO_MARK, Turn

Message = dict[str, Any]

_IMAGE, _IMAGE_OR_VIDEO = re.compile(IMAGE_MARK), re.compile(f"{IMAGE_MARK}|{VIDEO_MARK}")


def messages_of(turns: tuple[Turn, ...], videos: bool = False) -> list[Message]:
    """Turns as Hugging Face messages: lists of image, video and text parts, in the order of the marks.

    Line breaks next to a mark are dropped: they only set the mark apart, and templates bring their own.

    Args:
        turns: of a conversation.
        videos: whether it has any; if not, "<video>" is a word.
    """
    return [message_of(turn, _parts(turn, videos)) for turn in turns]


def message_of(turn: Turn, content: str | list[Message]) -> Message:
    """A message of a turn with this content; its reasoning stands under the names by which templates look for it."""
    thinking = {"reasoning_content": turn.thinking, "thinking": turn.thinking} if turn.thinking else {}
    return {"role": turn.role, "content": content} | thinking


def marks_of(videos: bool) -> re.Pattern[str]:
    """Finds where pictures stand in a text, and videos if there are any."""
    return _IMAGE_OR_VIDEO if videos else _IMAGE


def _parts(turn: Turn, videos: bool) -> list[Message]:
    if turn.role == "assistant":
        return [{"type": "text", "text": turn.text}]
    parts: list[Message] = []
    marks = marks_of(videos).findall(turn.text)
    for number, words in enumerate(marks_of(videos).split(turn.text)):
        if number > 0:
            parts.append({"type": "image" if marks[number - 1] == IMAGE_MARK else "video"})
            words = words.removeprefix("\n")
        if number < len(marks):
            words = words.removesuffix("\n")
        if words.strip():
            parts.append({"type": "text", "text": words})
    return parts


def texts_of(message: Message) -> list[str]:
    """The texts of a message, in their order."""
    if isinstance(message["content"], str):
        return [message["content"]]
    return [part["text"] for part in message["content"] if part["type"] == "text"]


def marked_message(message: Message, marks: Marks, numbers: Iterator[int]) -> Message:
    """A message with its texts marked; ``numbers`` gives the number of the next piece."""
    if isinstance(message["content"], str):
        return message | {"content": marks.put(next(numbers))}
    parts = [part | {"text": marks.put(next(numbers))} if part["type"] == "text" else part for part in message["content"]]
    return message | {"content": parts}
