"""Places the labels: from the characters of the answers to the token ids that the processor made.

The processor puts a run of image tokens, some with structure tokens between, where the text has one placeholder. It is
told apart in one of two ways: by the replacements that transformers' processors report (exact), else by walking along
both sequences of ids. Either way every id outside of the runs must equal that of our own tokenisation.
"""

import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from evomoe.data.chat_template import LabelMismatchError, RenderedConversation
from evomoe.data.records import Record
from evomoe.support.processor import Tokenizer
from evomoe.support.text import shortened

IGNORED = -100

Replacements = Sequence[dict[str, Any]]


class Token(NamedTuple):
    """A token's characters in the rendered text; none for a token of a picture or one that the tokenizer adds."""

    start: int
    end: int
    of_image: bool = False


class PlacedLabels(NamedTuple):
    """Per token of the processor: its label, and whether it belongs to a picture."""

    labels: list[int]
    of_image: list[bool]


def place_labels(
    record: Record,
    rendered: RenderedConversation,
    ids: list[int],
    replacements: Replacements | None,
    tokenizer: Tokenizer,
    placeholders: Sequence[str],
) -> PlacedLabels:
    """Labels the answers among the processor's token ids.

    Args:
        record: Named in errors.
        rendered: The text and the characters of its answers.
        ids: (S,) what the processor made of the text and its pictures.
        replacements: What the processor put where the placeholders stood: dicts with "span" (start, end) in the text
            and "replacement"; None if the processor does not say.
        tokenizer: The processor's fast tokenizer.
        placeholders: What stands in the text for a picture or a video, of those kinds that the record has.

    Raises:
        LabelMismatchError: The ids differ from the text's outside of the pictures, or an answer's borders fall into
            tokens.
    """
    tokens = _tokens_of(record, rendered.text, ids, replacements, tokenizer, placeholders)
    labels = [IGNORED] * len(ids)
    for first, last in answer_tokens(record, rendered, ids, [token[:2] for token in tokens], tokenizer):
        labels[first : last + 1] = ids[first : last + 1]
    return PlacedLabels(labels, [token.of_image for token in tokens])


def answer_tokens(
    record: Record, rendered: RenderedConversation, ids: list[int], places: Sequence[tuple[int, int]], tokenizer: Tokenizer
) -> list[tuple[int, int]]:
    """The first and the last token of every answer.

    Args:
        record: Named in errors.
        rendered: The text and the characters of its answers.
        ids: (S,) token ids.
        places: (S,) the start and the end of their characters, in reading order; the same for a token that has none.
        tokenizer: Reads the ids back.

    Raises:
        LabelMismatchError: An answer has no token, shares one with another turn, or does not read as it should.
    """
    spans = []
    inside_of = tokens_inside(rendered.answers, places)
    for (start, end), answer, inside in zip(rendered.answers, rendered.words, inside_of, strict=True):
        if inside is None:
            raise LabelMismatchError(f"{record.where}: no token belongs to the answer {shortened(answer)!r}")
        first, last = inside
        outside = rendered.text[places[first][0] : start] + rendered.text[end : max(end, places[last][1])]
        if outside.strip():
            raise LabelMismatchError(
                f"{record.where}: a token at the border of the answer {shortened(answer)!r} also holds {outside!r} of another turn"
            )
        decoded = tokenizer.decode(ids[first : last + 1], clean_up_tokenization_spaces=False)
        if _letters(answer) not in _letters(decoded):
            raise LabelMismatchError(
                f"{record.where}: the labels read {shortened(decoded)!r} instead of the answer {shortened(answer)!r}"
            )
        spans.append((first, last))
    return spans


def tokens_inside(spans: Sequence[tuple[int, int]], places: Sequence[tuple[int, int]]) -> list[tuple[int, int] | None]:
    """The first and the last token with characters of each span, for conversations of a thousand turns too.

    Args:
        spans: the start and the end of some characters each.
        places: (S,) as ``answer_tokens`` takes them.
    """
    starts, ends = zip(*places, strict=True) if places else ((), ())
    # Those without characters, of a picture or added by the tokenizer, stand in no order.
    numbers = [number for number, start in enumerate(starts) if start < ends[number]]
    if len(numbers) < len(starts):
        starts, ends = [starts[number] for number in numbers], [ends[number] for number in numbers]
    found = []
    for start, end in spans:
        first, after = bisect_right(ends, start), bisect_left(starts, end)
        found.append((numbers[first], numbers[after - 1]) if first < after else None)
    return found


def _letters(text: str) -> str:
    # Tokenizers may normalise, and place white space their own way.
    return "".join(unicodedata.normalize("NFKC", text).split())


def _tokens_of(
    record: Record,
    text: str,
    ids: list[int],
    replacements: Replacements | None,
    tokenizer: Tokenizer,
    placeholders: Sequence[str],
) -> list[Token]:
    own_text = text if replacements is None else _expand(text, replacements)
    standing_for = {tokenizer.convert_tokens_to_ids(one) for one in placeholders} if replacements is None else set()
    failures = []
    for add_special_tokens in (True, False):  # the processor keeps its own choice to itself
        own = tokenizer(own_text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
        try:
            origins = align(own["input_ids"], ids, standing_for)
        except _Difference as difference:
            failures.append((difference.at, difference.own_at, own["input_ids"]))
            continue
        offsets = own["offset_mapping"]
        tokens = [Token(0, 0, True) if origin is None else Token(*offsets[origin]) for origin in origins]
        return _before_expansion(tokens, replacements) if replacements else tokens
    at, own_at, own_ids = max(failures)
    raise LabelMismatchError(
        f"{record.where}: token {at} from the processor is {_shown(ids, at, tokenizer)}, "
        f"but the text of the chat template has {_shown(own_ids, own_at, tokenizer)} there"
    )


class _Difference(Exception):
    def __init__(self, at: int, own_at: int) -> None:
        super().__init__(at, own_at)
        self.at, self.own_at = at, own_at


def align(own_ids: list[int], ids: list[int], placeholders: Collection[int]) -> list[int | None]:
    """Finds for each of `ids` its position in `own_ids`, where one placeholder stands for a run of any ids.

    Args:
        own_ids: (S',) ids with one placeholder for each picture or video.
        ids: (S,) ids with a run of one or more ids for each of them.
        placeholders: The ids of the placeholders; none if `own_ids` has none, so that both must be equal.

    Returns:
        (S,) positions in `own_ids`; None within a run.

    Raises:
        _Difference: Something differs outside of the runs.
    """
    borders = [i for i, own in enumerate(own_ids) if own in placeholders]
    segments = list(zip([0, *(i + 1 for i in borders)], [*borders, len(own_ids)], strict=True))
    origins: list[int | None] = []
    for number, (start, end) in enumerate(segments):
        at, segment = len(origins), own_ids[start:end]
        if number == 0:
            begin = 0
        elif number == len(segments) - 1:
            begin = max(at + 1, len(ids) - len(segment))
        else:
            begin = _find(segment, ids, at + 1)
            if begin is None:
                raise _Difference(at, start)
        for offset, own in enumerate(segment):
            if begin + offset >= len(ids) or ids[begin + offset] != own:
                raise _Difference(begin + offset, start + offset)
        origins += [None] * (begin - at) + list(range(start, end))
    if len(origins) != len(ids):
        raise _Difference(len(origins), len(own_ids))
    return origins


def _find(segment: list[int], ids: list[int], first: int) -> int | None:
    candidates = range(first, len(ids) - len(segment) + 1)
    if not segment:
        return first
    head = segment[0]  # compared first: a segment may be long
    return next((begin for begin in candidates if ids[begin] == head and ids[begin : begin + len(segment)] == segment), None)


def _expand(text: str, replacements: Replacements) -> str:
    pieces, position = [], 0
    for replacement in replacements:
        start, end = replacement["span"]
        pieces += [text[position:start], replacement["replacement"]]
        position = end
    return "".join([*pieces, text[position:]])


def _before_expansion(tokens: Sequence[Token], replacements: Replacements) -> list[Token]:
    """Tokens of the expanded text, in reading order, as tokens of the text with placeholders."""
    found, at, gained = [], 0, 0
    for token in tokens:
        if token.start == token.end:
            found.append(token)
            continue
        while at < len(replacements) and replacements[at]["new_span"][1] <= token.start:
            gained = replacements[at]["new_span"][1] - replacements[at]["span"][1]
            at += 1
        inside = at < len(replacements) and token.end > replacements[at]["new_span"][0]
        found.append(Token(0, 0, True) if inside else Token(token.start - gained, token.end - gained))
    return found


def _shown(ids: list[int], at: int, tokenizer: Tokenizer) -> str:
    return f"{tokenizer.convert_ids_to_tokens(ids[at])!r} (id {ids[at]})" if at < len(ids) else "nothing"
