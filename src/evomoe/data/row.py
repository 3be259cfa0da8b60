"""What a row of training data says: its turns, pictures and videos. Nothing in it that changes its meaning is passed over."""

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from PIL import Image

from evomoe.data.turns import IMAGE_MARK, VIDEO_MARK, BadRecordError, Turn
from evomoe.support.text import counted, kind_of, shortened

Picture = str | bytes | Image.Image
Medium = TypeVar("Medium")

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
CONVERSATION, PICTURES, SYSTEM = ("conversations", "messages"), ("image", "images"), ("system", "system_prompt")
VIDEOS = ("video", "videos")
_THINKING = ("reasoning_content", "reasoning", "thinking")
_LEARNED = ("loss", "weight", "train")
"""Fields of a turn that say whether an answer is learned."""
_SOURCES = ("image", "video", "path", "url", "image_url", "video_url", "bytes")
"""Fields of a part that hold its picture or video."""
_MARKS = {"image": IMAGE_MARK, "image_url": IMAGE_MARK, "video": VIDEO_MARK, "video_url": VIDEO_MARK}
"""What stands in the text for a part of each type."""
_OF_TURN = frozenset({"role", "from", "content", "value", *_THINKING, *_LEARNED})
_OF_PART = frozenset({"type", "text", "index", *_SOURCES})
FIELDS = ("id", *PICTURES, *VIDEOS, *CONVERSATION, *SYSTEM)
_OF_ROW = frozenset(FIELDS)

_REFUSED = re.compile(
    r"(?P<media>(?:video|audio|sound|speech)s?(?:_?(?:path|file|url|bytes)s?)?)|(?P<tools>tools?|tool_calls?|tool_call_id|functions?|function_call)"
    r"|(?P<documents>documents?)"
)
_WHY = {
    "media": "words, pictures and what the record's 'video' holds are learned, nothing else",
    "tools": "calls of tools are not learned",
    "documents": "put what they say into a turn",
}
_LONGEST_PATH = 4096
"""Text longer than any path is a picture in base64."""


class Row(NamedTuple):
    """A row, read.

    Attributes:
        turns: The conversation.
        images: Its pictures, in the order of their marks.
        videos: The paths of its videos, in the order of their marks.
        unread: Fields that nobody reads.
    """

    turns: tuple[Turn, ...]
    images: list[Picture]
    videos: list[str]
    unread: list[str]


def is_refused(field: str) -> bool:
    """Whether a field of this name would change what a record means, and is not read."""
    return _REFUSED.fullmatch(field) is not None


def read_row(row: object) -> Row:
    """Reads a row.

    Raises:
        BadRecordError: It is no conversation that can be learned, or says what is not read.
    """
    if isinstance(row, BadRecordError):  # what a stream has found in the place of a row
        raise row
    if not isinstance(row, Mapping):
        raise BadRecordError(f"a record must be an object with named fields, not {kind_of(row)}")
    unread = _unread(row, _OF_ROW, "")
    turns, shown = [], []
    for number, turn in enumerate(_turns_of(row)):
        if not isinstance(turn, Mapping):
            raise BadRecordError(f"turn {number} must have from/value or role/content; it is {kind_of(turn)}")
        unread += _unread(turn, _OF_TURN, f"turn {number} has ")
        content, parts = _content(number, _first(turn, "content", "value"))
        for part in parts:
            unread += _unread(part, _OF_PART, f"a part of turn {number} has ")
        shown += [part for part in parts if part.get("type") != "text"]
        turns.append(_turn(number, turn, content))
    if not turns:
        raise BadRecordError("the conversation is empty")
    system = _system(row, turns)
    images = _media(row, [part for part in shown if _MARKS[part["type"]] == IMAGE_MARK], PICTURES, _picture)
    videos = _media(row, [part for part in shown if _MARKS[part["type"]] == VIDEO_MARK], VIDEOS, _video)
    for mark, found, name in ((IMAGE_MARK, images, "image"), (VIDEO_MARK, videos, "video")):
        marks = sum(turn.text.count(mark) for turn in turns if turn.role != "assistant")
        if marks != len(found):
            raise BadRecordError(f"the text has {marks} {mark} but the record has {counted(len(found), name)}")
    return Row((*system, *turns), images, videos, list(dict.fromkeys(unread)))


def value_of(row: Mapping[str, Any], field: str) -> Any:
    """A field's value; None where there is none, which pandas and datasets write in several ways."""
    value = row.get(field)
    return value if _is_there(value) and (value or not isinstance(value, str | bytes | list | tuple | dict)) else None


def _is_there(value: object) -> bool:
    """Whether a value is one: pandas writes NaN where there is none."""
    return value is not None and not (isinstance(value, float) and value != value)


def _first(row: Mapping[str, Any], *names: str) -> Any:
    return next((row[name] for name in names if _is_there(row.get(name))), None)


def _unread(row: Mapping[str, Any], known: frozenset[str], where: str) -> list[str]:
    """The fields that nobody reads; raises BadRecordError for one that changes what the record means."""
    if known.issuperset(row):
        return []
    given = [str(field) for field in row if field not in known and value_of(row, field) is not None]
    for field in given:
        if field not in VIDEOS and (found := _REFUSED.fullmatch(field)):
            raise BadRecordError(f"{where or 'it has '}the field {field!r}; {_WHY[str(found.lastgroup)]}")
        if not where and field in _LEARNED and row[field] != 1:
            raise BadRecordError(f"it has {field} {row[field]!r} of the whole record; give it to the turns that it is about")
        if where and field in (*PICTURES, *VIDEOS):
            raise BadRecordError(
                f"{where}the field {field!r}; put pictures into the record's 'images' and videos into its 'videos', or into parts of "
                "type image and video"
            )
    of = "a turn's " if where.startswith("turn") else "a part's " if where else ""
    return [f"{of}{field!r}" for field in given]


def _turns_of(row: Mapping[str, Any]) -> Sequence[Any]:
    fields = [field for field in CONVERSATION if _is_there(row.get(field))]
    if len(fields) != 1:
        found = "both" if fields else "neither"
        raise BadRecordError(f"a record needs one of 'conversations' and 'messages'; this one has {found}")
    turns = row[fields[0]]
    if not isinstance(turns, list | tuple):
        raise BadRecordError(f"'{fields[0]}' must be a list of turns, not {kind_of(turns)}")
    return turns


def _turn(number: int, turn: Mapping[str, Any], content: str) -> Turn:
    role = _first(turn, "role", "from")
    if not isinstance(role, str) or role not in _ROLES:
        raise BadRecordError(f"turn {number} has the unknown role {role!r}; known are {', '.join(_ROLES)}")
    role = _ROLES[role]
    if len(turn) == 2:  # a role and a text, as nearly all have it
        return Turn(role, content)
    thinking = {field: value for field in _THINKING if (value := value_of(turn, field)) is not None}
    if thinking and role != "assistant":
        raise BadRecordError(f"turn {number} has the field {next(iter(thinking))!r}; only an answer has reasoning")
    if len({*map(str, thinking.values())}) > 1 or not all(isinstance(value, str) for value in thinking.values()):
        raise BadRecordError(f"turn {number} has {' and '.join(thinking)}; the reasoning of an answer is one text")
    return Turn(role, content, next(iter(thinking.values()), ""), _learned(number, turn, role))


def _learned(number: int, turn: Mapping[str, Any], role: str) -> bool:
    given = {field: value for field in _LEARNED if (value := value_of(turn, field)) is not None}
    for field, value in given.items():
        if value not in (0, 1):
            raise BadRecordError(f"turn {number} has {field} {value!r}; an answer is learned (1, true) or not (0, false)")
        if value and role != "assistant":
            raise BadRecordError(f"turn {number} is the {role}'s and has {field} {value!r}; only answers are learned")
    if len(given.values() and {*map(bool, given.values())}) > 1:
        raise BadRecordError(f"turn {number} has {' and '.join(given)}, which say different things")
    return all(given.values())


def _content(number: int, content: Any) -> tuple[str, list[Mapping[str, Any]]]:
    """A turn's text, with a mark for each picture, and its parts."""
    if isinstance(content, str):
        return content, []
    if not isinstance(content, list | tuple):
        raise BadRecordError(f"the text of turn {number} must be a string, not {kind_of(content)}")
    return "".join(_part_text(number, part) for part in content), list(content)


def _part_text(number: int, part: object) -> str:
    if isinstance(part, Mapping):
        if (mark := _MARKS.get(str(part.get("type")))) is not None:
            return mark
        if part.get("type") == "text" and isinstance(text := part.get("text"), str) and _source(part) is None:
            return text
    raise BadRecordError(f"turn {number} has a part that is neither a text nor an image or a video: {shortened(part)}")


def _system(row: Mapping[str, Any], turns: Sequence[Turn]) -> list[Turn]:
    """The turn that a record's own field for it makes."""
    given = {field: value for field in SYSTEM if (value := value_of(row, field)) is not None}
    for field, value in given.items():
        if not isinstance(value, str):
            raise BadRecordError(f"{field!r} must be a string, not {kind_of(value)}")
    said = {*given.values(), *(turn.text for turn in turns if turn.role == "system")}
    if given and len(said) > 1:
        raise BadRecordError(f"it has two system prompts, one of them in {next(iter(given))!r}; leave one out")
    return [Turn("system", next(iter(given.values())))] if given and turns[0].role != "system" else []


def _media(
    row: Mapping[str, Any], shown: Sequence[Mapping[str, Any]], names: tuple[str, str], read: Callable[[object], Medium]
) -> list[Medium]:
    """Pictures or videos in the order in which they are shown: the parts' own, those that their indices name, or the record's as they stand.

    Args:
        shown: the parts that show one.
        names: the fields that a record may have them in, the first for one, the second for several.
        read: makes one of what stands there.
    """
    one, several = names
    fields = [field for field in names if value_of(row, field) is not None]
    if len(fields) > 1:
        raise BadRecordError(f"a record has its {several} in '{one}' or in '{several}', not in both")
    listed = row[fields[0]] if fields else []
    found = [read(value) for value in (listed if isinstance(listed, list | tuple) else [listed])]
    own = [source for part in shown if (source := _source(part)) is not None]
    if own and (found or len(own) < len(shown)):
        raise BadRecordError(f"a record has its {several} in the parts of its turns or in a field of its own, not in both")
    if own:
        return [read(value) for value in own]
    indices = [part["index"] for part in shown if _is_there(part.get("index"))]
    if not indices:
        return found
    if len(indices) < len(shown) or not all(type(index) is int and 0 <= index < len(found) for index in indices):
        raise BadRecordError(f"the parts show the {several} {indices}, and the record has {counted(len(found), one)}, from 0")
    if unseen := {*range(len(found))} - {*indices}:
        raise BadRecordError(f"no part shows {one} {min(unseen)} of the record's {len(found)}")
    return [found[index] for index in indices]


def _source(part: Mapping[str, Any]) -> Any:
    found = [part[field] for field in _SOURCES if value_of(part, field) is not None]
    if len(found) > 1:
        raise BadRecordError(f"a part names its {part.get('type')} more than once: {shortened(part)}")
    return found[0] if found else None


def _video(video: object) -> str:
    if isinstance(video, Mapping):  # an undecoded cell of a datasets video column; a video of OpenAI's messages
        video = next((found for field in ("path", "url") if (found := value_of(video, field)) is not None), None)
    if not isinstance(video, str) or not video:
        raise BadRecordError(f"a video must be the path of its file, not {kind_of(video)}")
    video = video.removeprefix("file://")
    if video.startswith(("http://", "https://", "data:")):
        raise BadRecordError(f"the video {shortened(video)} is not a file; save it, and name the file")
    return video


def _picture(image: object) -> Picture:
    if isinstance(image, Mapping):  # an undecoded cell of a datasets image column; a picture of OpenAI's messages
        image = next((found for field in ("bytes", "path", "url") if (found := value_of(image, field)) is not None), None)
    if not isinstance(image, str | bytes | Image.Image) or not image:
        raise BadRecordError(f"an image must be a path or a picture, not {kind_of(image)}")
    if not isinstance(image, str):
        return image
    image = image.removeprefix("file://")
    if image.startswith(("http://", "https://")):
        raise BadRecordError(f"the image {shortened(image)} lies in the net; save it, and name the file")
    encoded = image.partition(",")[2] if image.startswith("data:") else image if len(image) > _LONGEST_PATH else ""
    if not encoded:
        return image
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise BadRecordError(f"the image {shortened(image)} is not a picture in base64: {error}") from error
