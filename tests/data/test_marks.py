"""Where texts begin alike and which tokens an answer has, found quickly, against slow and plain ways to find them."""

import re

from hypothesis import given
from hypothesis import strategies as st

from evomoe.data.labels import tokens_inside
from evomoe.data.marks import Marks, Piece, common_start, tokens_pattern

SPECIAL = ["<s>", "<s>a", "</s>", "s>", "ab", "a", "\n"]
TEXTS = st.lists(st.sampled_from([*SPECIAL, "<", "s", ">", "b", " "]), max_size=12).map("".join)


def pieces(text: str, special: list[str]) -> list[str]:
    longest_first = sorted(special, key=len, reverse=True)
    return re.findall("|".join([*map(re.escape, longest_first), "."]), text, re.DOTALL)


@given(TEXTS, TEXTS, TEXTS, st.lists(st.sampled_from(SPECIAL), unique=True))
def test_texts_begin_alike_by_whole_special_tokens(start, one, other, special):
    one, other = start + one, start + other
    expected = 0
    for mine, theirs in zip(pieces(one, special), pieces(other, special), strict=False):
        if mine != theirs:
            break
        expected += len(mine)
    assert common_start(one, other, tokens_pattern(special)) == expected


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=15), st.data())
def test_tokens_inside_are_those_that_share_a_character(sizes, data):
    places, at = [], 0
    for size, empty in sizes:
        places.append((0, 0) if empty else (at, at + size))
        at += 0 if empty else size
    borders = sorted(data.draw(st.sets(st.integers(0, at), max_size=8)))
    spans = list(zip(borders[::2], borders[1::2], strict=False))
    for span, found in zip(spans, tokens_inside(spans, places), strict=True):
        sharing = [n for n, place in enumerate(places) if max(span[0], place[0]) < min(span[1], place[1])]
        assert found == ((sharing[0], sharing[-1]) if sharing else None)


def test_private_characters_of_a_text_stay_when_marks_are_taken_out():
    marks = Marks([Piece.of(0, "mine: \U000f0000 and \U0010fffd", False)])
    marked = f"<user>{marks.put(0)}</s>"
    assert marks.taken_out(marked) == "<user>mine: \U000f0000 and \U0010fffd</s>" != marked
