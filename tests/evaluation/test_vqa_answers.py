"""VQA's normalisation and accuracy, case by case, worked out by hand."""

import pytest

from evomoe.evaluation.benchmarks.vqa_answers import (
    CONTRACTIONS,
    evalai_answer,
    leave_one_out,
    lmms_vqa_answer,
    ten_answers,
    vlmevalkit_vqa_answer,
    vqa_answer,
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The  Dog", "dog"),
        ("a an the", ""),
        ("none", "0"),
        ("Ten", "10"),
        ("twenty", "twenty"),
        ("t-shirt", "t shirt"),  # a mark without a space beside it becomes one
        ("t - shirt", "t shirt"),
        ("red- blue", "red blue"),
        ("red-blue -", "redblue"),  # beside a space anywhere, it is deleted everywhere
        ("1,000", "1000"),
        ("1,000 a-b", "1000 ab"),  # a comma in a number deletes every mark
        ("1,,000", "1 000"),
        ("yes.", "yes"),
        ("3.5", "3.5"),
        ("15.", "15"),
        ("a.b", "ab"),
        (".5", ".5"),
        ("." * 33 + "x", ".x"),  # at most 32 periods go
        ("dont", "don't"),
        ("DONT", "don't"),
        ("couldnt've", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("man's", "man's"),
        ("it's 5:30", "it's 5:30"),
        ("50%", "50%"),
        ("red\nblue\tgreen ", "red blue green"),
        ("(b)", "b"),
        ("½ cup!", "½ cup"),
        ("", ""),
    ],
)
def test_vqa_answer(text, wanted):
    assert vqa_answer(text) == wanted


def test_how_the_other_readings_differ():
    assert (vqa_answer("1,,000"), lmms_vqa_answer("1,,000")) == ("1 000", "1000")
    assert (vqa_answer("15."), vlmevalkit_vqa_answer("15."), vlmevalkit_vqa_answer("yes.")) == ("15", "15.", "yes")
    assert (vqa_answer("man's"), evalai_answer("Man's")) == ("man's", "man 's")
    assert (vqa_answer("why, yes?"), evalai_answer("why, yes?")) == ("why yes", "why yes")
    assert (vqa_answer("a,b"), evalai_answer("a,b")) == ("b", "ab")


def test_contractions_are_made_of_full_words_without_one_apostrophe():
    assert CONTRACTIONS["shed've"] == CONTRACTIONS["she'dve"] == "she'd've"
    assert "wed" not in CONTRACTIONS and len(CONTRACTIONS) == 114


@pytest.mark.parametrize(("agreeing", "wanted"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_leave_one_out(agreeing, wanted):
    assert leave_one_out("yes", ["yes"] * agreeing + ["no"] * (10 - agreeing)) == pytest.approx(wanted)


def test_ten_answers():
    assert ten_answers([{"answer": "x"}] * 10, "f") == ten_answers(["x"] * 10, "f") == ten_answers({"answer": ["x"] * 10}, "f")
    with pytest.raises(ValueError, match="f, question 7: 10 annotators expected, but 9 found"):
        ten_answers(["x"] * 9, "f, question 7")
