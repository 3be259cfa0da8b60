"""Where the words of each turn stand in a rendering: found with marks around them, which are then taken out again."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

_FIRST, _LAST = 0xF0000, 0x10FFFD
"""Characters for private use: no template knows them, and none is white space that one would strip."""
_PRIVATE = re.compile(f"[{chr(_FIRST)}-{chr(_LAST)}]")
_THOUGHT = re.compile(r"\s*(?=\S).*</think>\s*", re.DOTALL)
"""What an answer holds of thinking, which templates render in a way of their own, or leave out."""


class Span(NamedTuple):
    """Characters of a rendering."""

    start: int
    end: int


@dataclass(frozen=True)
class Piece:
    """Words of a turn.

    Attributes:
        turn: the turn's number.
        before, words, after: the piece as it is given to the template. Templates may strip or rewrite what stands around the words.
        thought: whether thinking stands before the words, which a template may show with them.
    """

    turn: int
    before: str
    words: str
    after: str
    thought: bool = False

    @property
    def thinking(self) -> str:
        """What was thought before the words, as far as they say so themselves."""
        inside = self.before.rpartition("</think>")[0] if self.thought else ""
        return inside.strip().removeprefix("<think>").strip()

    @classmethod
    def of(cls, turn: int, text: str, is_answer: bool) -> "Piece":
        thinking = _THOUGHT.match(text) if is_answer and "</think>" in text else None
        if thinking and thinking.end() == len(text):  # nothing but thinking
            thinking = None
        start = thinking.end() if thinking else 0
        words = text[start:].strip()
        at = text.index(words, start)
        return cls(turn, text[:at], words, text[at + len(words) :], thinking is not None)


class Marks:
    """Marks around the words of all pieces of a conversation.

    Args:
        pieces: in the order of the conversation.
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        used = {sign for piece in pieces for sign in _PRIVATE.findall(piece.before + piece.words + piece.after)}
        free = (sign for sign in map(chr, range(_FIRST, _LAST)) if sign not in used)
        self.pieces = list(pieces)
        self._marks = [(next(free), next(free), next(free)) for _ in pieces]
        self._all = {mark for marks in self._marks for mark in marks}

    def put(self, number: int) -> str:
        """A piece's text with its marks: where thinking begins, where the words begin, where they end."""
        piece, (thought, start, end) = self.pieces[number], self._marks[number]
        if not piece.words:
            return piece.before + piece.after
        shown = piece.before.lstrip()
        space = piece.before[: len(piece.before) - len(shown)]
        return space + (thought if piece.thought else "") + shown + start + piece.words + end + piece.after

    def taken_out(self, text: str) -> str:
        """A rendering without marks."""
        return _PRIVATE.sub(lambda found: "" if found[0] in self._all else found[0], text)

    def found(self, text: str, plain: str) -> tuple[list[Span | None], list[int | None]]:
        """For each piece, where its words stand in the rendering without marks, and where what is shown of its thinking begins.

        None for a piece without words, and for one whose words the rendering does not have, has twice, or not in their order.

        Args:
            text: a rendering with marks.
            plain: the same without them, as ``taken_out`` gives it.
        """
        places: dict[str, int] = {}
        marks = (found for found in _PRIVATE.finditer(text) if found[0] in self._all)
        for number, found in enumerate(marks):
            places[found[0]] = -1 if found[0] in places else found.start() - number
        spans: list[Span | None] = []
        thoughts: list[int | None] = []
        last = 0
        for piece, (thought, start, end) in zip(self.pieces, self._marks, strict=True):
            span = Span(places.get(start, -1), places.get(end, -1))
            good = bool(piece.words) and last <= span.start and plain[span.start : span.end] == piece.words
            spans.append(span if good else None)
            thoughts.append(places.get(thought) if good else None)
            last = span.end if good else last
        return spans, thoughts


def common_start(one: str, other: str, special: re.Pattern[str]) -> int:
    """How many characters two texts begin with alike, none of them a part of a special token that only one has."""
    length, beyond = 0, min(len(one), len(other)) + 1
    while beyond - length > 1:  # they are alike up to the one, and not up to the other
        middle = (length + beyond) // 2
        alike = one[length:middle] == other[length:middle]
        length, beyond = (middle, beyond) if alike else (length, middle)
    for text in (one, other):
        for token in special.finditer(text):
            if token.end() > length:
                length = min(length, token.start())
                break
    return length


def tokens_pattern(special_tokens: Sequence[str]) -> re.Pattern[str]:
    """Finds special tokens in a text, the longest where several begin."""
    longest_first = sorted(filter(None, special_tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
