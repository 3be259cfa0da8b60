"""A look at every record before training, without decoding a picture: its length, and whether its labels can be placed."""

import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from PIL import Image
from tqdm import tqdm

from evomoe.data.chat_template import ChatTemplate
from evomoe.data.images import BadImageError, Shape, read_size
from evomoe.data.labels import answer_tokens, tokens_inside
from evomoe.data.records import BadRecordError, Record
from evomoe.data.row_check import AT_ONCE, PROGRESS_FROM
from evomoe.data.videos import VideoReader, check_video, options_of
from evomoe.support import hf
from evomoe.support.errors import foreign, panics_as_errors
from evomoe.support.processor import Processor, beyond_rows, cannot_process
from evomoe.support.workers import mapped

_Size = tuple[int, ...]  # height and width, in pixels; of a video its frames before these
_Read = TypeVar("_Read")


class Surveyed(NamedTuple):
    """What is known of a record before training.

    Attributes:
        length: Its tokens, image tokens included, before any cut; 1 for a record that cannot be rendered.
        fault: Why it cannot be trained on, naming the record; None for a good one.
    """

    length: int
    fault: str | None = None


class _Measured(NamedTuple):
    where: str
    length: int  # in tokens, pictures and videos as single placeholders
    first_label: int
    placeholders: list[int]
    sizes: list[_Size]  # of pictures, then of videos: their order among each other decides nothing


def survey(
    records: Sequence[Record],
    processor: Processor,
    template: ChatTemplate,
    shape: Shape,
    max_length: int,
    reader: VideoReader,
    workers: int = 0,
) -> list[Surveyed]:
    """Renders and tokenises every record, places its labels and finds whether it can be cut.

    Text counts are exact, but for special tokens that a processor leaves out. For pictures, a blank one of the most common
    size is counted; other sizes differ from it by what the processor reports. The count is approximate if the processor
    cannot report and makes other numbers of tokens for other sizes, or if its tokens melt into the text's.

    Args:
        records: What `load_records` returns.
        processor: What will make tensors of them.
        template: Its chat template.
        shape: What becomes of the pictures' shape.
        max_length: The tokens that an item may have.
        reader: What takes frames out of their videos.
        workers: The processes that do it; 0 does it in this one.
    """
    known: dict[tuple[str, bool], _Size] = getattr(records, "sizes", {})
    measured: list[_Measured | Surveyed] = []
    chunks = [range(start, min(start + AT_ONCE, len(records))) for start in range(0, len(records), AT_ONCE)]
    found = mapped(partial(_measure, records, template=template, shape=shape, known=known), chunks, workers)
    with tqdm(
        total=len(records), desc="checking labels and lengths", unit="record", disable=len(records) < PROGRESS_FROM
    ) as progress:
        for one in found:
            measured += one
            progress.update(len(one))
    sizes: Counter[_Size] = Counter(size for one in measured if isinstance(one, _Measured) for size in one.sizes)
    videos = [size for size in sizes if len(size) == 3]
    pictures: Counter[_Size] = Counter({size: count for size, count in sizes.items() if len(size) == 2})
    tokens_of = _image_tokens(pictures, processor, template)
    if videos:
        tokens_of |= _video_tokens(videos, processor, template, reader)
    return [_judge(one, tokens_of, max_length) if isinstance(one, _Measured) else one for one in measured]


def cut_fault(where: str, length: int, first_label: int, pictures_end: int, max_length: int) -> str | None:
    """Why a record cannot be cut at `max_length`, if so.

    Args:
        where: Names the record.
        length: Its tokens.
        first_label: The position of its first label.
        pictures_end: The position after its last image token; 0 without pictures.
        max_length: The tokens that stay.
    """
    if length <= max_length or (pictures_end <= max_length and first_label < max_length):
        return None
    would = "cut through its pictures" if pictures_end > max_length else "leave no answer to learn"
    return f"{where}: it has {length} tokens, and cutting it at max_length {max_length} would {would}; raise `max_length`"


def read_pictures(record: Record, read: Callable[[str | Image.Image], _Read]) -> list[_Read]:
    """What `read` makes of each picture of a record.

    Raises:
        BadRecordError: A picture is bad.
    """
    return _read_each(record, record.images, read)


def read_videos(record: Record, read: Callable[[str], _Read]) -> list[_Read]:
    """What `read` makes of each video of a record.

    Raises:
        BadRecordError: A video is bad.
    """
    return _read_each(record, record.videos, read)


def _read_each(record: Record, shown: Sequence[Any], read: Callable[[Any], _Read]) -> list[_Read]:
    try:
        return [read(one) for one in shown]
    except BadImageError as error:
        raise BadRecordError(f"{record.where}: {error}") from error


def _measure(
    records: Sequence[Record],
    numbers: range,
    template: ChatTemplate,
    shape: Shape,
    known: dict[tuple[str, bool], _Size],
) -> list[_Measured | Surveyed]:
    results: dict[int, _Measured | Surveyed] = {}
    rendered = {}
    for number in numbers:
        try:
            record = records[number]
            rendered[number] = (
                record,
                template.render(record),
                [
                    *read_pictures(record, lambda image: shape.size(*_size(image, known))),
                    *read_videos(record, lambda path: _video_size(path, known)),
                ],
            )
        except BadRecordError as error:
            results[number] = Surveyed(1, str(error))
    encodings = _tokenized([conversation.text for _, conversation, _ in rendered.values()], template)
    for (number, (record, conversation, sizes)), encoding in zip(rendered.items(), encodings, strict=True):
        if isinstance(encoding, Exception):
            results[number] = Surveyed(1, cannot_process(record.where, template.tokenizer, encoding))
            continue
        ids, places = encoding.ids, encoding.offsets
        if beyond := beyond_rows(template.tokenizer, ids):
            results[number] = Surveyed(len(ids), f"{record.where}: {beyond}")
            continue
        try:
            spans = answer_tokens(record, conversation, ids, places, template.tokenizer)
        except BadRecordError as error:
            results[number] = Surveyed(len(ids), str(error))
            continue
        except Exception as error:
            results[number] = Surveyed(len(ids), cannot_process(record.where, template.tokenizer, error))
            continue
        placeholders = _placeholders(conversation.text, template.placeholders(record), places) if sizes else []
        results[number] = _Measured(record.where, len(ids), spans[0][0], placeholders, sizes)
    return [results[number] for number in numbers]


def _placeholders(text: str, placeholders: Sequence[str], places: Sequence[tuple[int, int]]) -> list[int]:
    """The tokens that hold a placeholder; none for a tokenizer that splits it."""
    spans = [found.span() for found in re.finditer("|".join(map(re.escape, placeholders)), text)]
    inside = tokens_inside(spans, places)
    return [one[0] for one in inside if one and one[0] == one[1]]


def _tokenized(texts: list[str], template: ChatTemplate) -> list[Any]:
    """The encoding of each text, or what the tokenizer raises for it."""
    if not texts:
        return []
    options = template.special_tokens(texts[0])
    try:
        with panics_as_errors():
            return template.tokenizer(texts, **options).encodings
    except Exception as error:
        return [error] if len(texts) == 1 else [one for text in texts for one in _tokenized([text], template)]


def _judge(one: _Measured, tokens_of: dict[_Size, int | str], max_length: int) -> Surveyed:
    counts = []
    for size in one.sizes:
        count = tokens_of[size]
        if isinstance(count, str):
            return Surveyed(1, f"{one.where}: {count}")
        counts.append(count)
    length = max(1, one.length + sum(count - 1 for count in counts))  # a picture replaces its placeholder
    first_label, pictures_end, gained = one.first_label, 0, 0
    for placeholder, count in zip(one.placeholders, counts, strict=False):
        gained += count - 1
        pictures_end = placeholder + gained + 1
        if placeholder < one.first_label:
            first_label = one.first_label + gained
    return Surveyed(length, cut_fault(one.where, length, first_label, pictures_end, max_length))


def _video_tokens(
    sizes: Sequence[_Size], processor: Processor, template: ChatTemplate, reader: VideoReader
) -> dict[_Size, int | str]:
    """The tokens of a video with frames of each size, measured on a black one, or why there can be none."""
    of_frames: dict[_Size, int | str] = {}
    without = len(template.tokenizer(template.video_token)["input_ids"])
    for frame in {size[1:] for size in sizes}:
        try:
            with panics_as_errors():
                made = processor(text=[template.video_token], **options_of([reader.blank(*frame)]))
            of_frames[frame] = len(made["input_ids"][0]) - without + 1
        except Exception as error:
            height, width = frame
            of_frames[frame] = f"{type(processor).__name__} cannot process a video of {width} x {height} pixels: {foreign(error)}"
    return {size: of_frames[size[1:]] for size in sizes}


def _image_tokens(sizes: Counter[_Size], processor: Processor, template: ChatTemplate) -> dict[_Size, int | str]:
    """The tokens of a picture of each size, or why there can be none.

    Raises:
        ValueError: The processor can process no picture.
    """
    reported = _reported(list(sizes), processor)
    failure = ""
    for size, _ in sizes.most_common():
        count = reported[size]
        if isinstance(count, str):
            continue
        try:
            with panics_as_errors():
                unreported = _measured_image_tokens(size, processor, template) - count
        except Exception as error:
            reported[size] = failure = _of_size(size, processor, error)
            continue
        return {size: count if isinstance(count, str) else count + unreported for size, count in reported.items()}
    if failure:
        raise ValueError(f"{failure}; it can process no picture of these records")
    return reported


def _reported(sizes: list[_Size], processor: Processor) -> dict[_Size, int | str]:
    """What the processor says of each size: the tokens, 0 if it cannot say, or why it takes none of that size."""
    if not sizes:
        return {}
    try:
        with panics_as_errors():
            counts = hf.image_token_counts(processor, [list(size) for size in sizes])
        return dict(zip(sizes, counts["num_image_tokens"], strict=True))
    except (AttributeError, TypeError, NotImplementedError):
        # The method is young and not complete: LLaVA's fails for image processors that do not crop.
        return dict.fromkeys(sizes, 0)
    except Exception as error:
        if len(sizes) == 1:
            return {sizes[0]: _of_size(sizes[0], processor, error)}
        return {size: count for one in sizes for size, count in _reported([one], processor).items()}


def _of_size(size: _Size, processor: Processor, error: Exception) -> str:
    height, width = size
    return f"{type(processor).__name__} cannot process a picture of {width} x {height} pixels: {foreign(error)}"


def _measured_image_tokens(size: _Size, processor: Processor, template: ChatTemplate) -> int:
    height, width = size
    with_image = processor(text=[template.image_token], images=[[Image.new("RGB", (width, height))]])
    without = template.tokenizer(template.image_token)
    return len(with_image["input_ids"][0]) - len(without["input_ids"]) + 1


def _size(image: str | Image.Image, known: dict[tuple[str, bool], _Size]) -> _Size:
    if isinstance(image, Image.Image):
        return image.height, image.width
    if (image, False) not in known:
        width, height = read_size(image)
        known[image, False] = height, width
    return known[image, False]


def _video_size(path: str, known: dict[tuple[str, bool], _Size]) -> _Size:
    if (path, True) not in known:
        known[path, True] = tuple(check_video(path, sys.maxsize))
    return known[path, True]
