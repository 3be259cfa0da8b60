"""A part of a benchmark's questions."""

from collections import Counter

import pytest

from evomoe.evaluation import Question
from evomoe.evaluation.sampling import draw

SPLITS = ("random", "popular", "adversarial")
POPE = [Question(f"{split}/{i}", "", answer=("yes", "no")[i % 2], type=split) for split in SPLITS for i in range(3000)]


@pytest.mark.parametrize("limit", [50, 100, 150, 300, 900])
def test_answers_that_alternate_are_drawn_alike(limit):
    some = draw(POPE, limit)
    assert len(some) == limit
    assert 0.35 <= sum(question.answer == "yes" for question in some) / limit <= 0.65
    assert max(Counter(question.type for question in some).values()) <= limit / 3 + 1


def test_types_keep_their_share_and_a_rare_one_is_there():
    questions = [Question(str(i), "", type="rare" if i == 7 else "often" if i % 4 else "seldom") for i in range(1000)]
    assert Counter(question.type for question in draw(questions, 100)) == {"often": 74, "seldom": 25, "rare": 1}
    assert {question.type for question in draw(questions, 3)} == {"often", "seldom", "rare"}
    assert [question.type for question in draw(questions, 1)] == ["often"]


def test_units_stay_whole_and_reach_the_limit():
    questions = [Question(str(i), "", unit=str(i // 3)) for i in range(60)]
    for limit in range(1, 60):
        some = draw(questions, limit)
        assert limit <= len(some) < limit + 3
        assert set(Counter(question.unit for question in some).values()) == {3}
        assert some == sorted(some, key=lambda question: int(question.id))
    assert draw(questions, 0) == draw(questions, 60) == draw(questions, 100) == questions


def test_the_same_are_drawn_everywhere():
    assert [question.id for question in draw(POPE, 6)] == [
        "random/402",
        "random/2607",
        "popular/185",
        "popular/2755",
        "adversarial/459",
        "adversarial/927",
    ]
