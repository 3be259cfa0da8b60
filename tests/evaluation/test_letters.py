"""Which letter an answer gives, under every protocol; by hand."""

import pytest

from evomoe.evaluation.benchmarks.letters import (
    lmms_letter,
    lmms_scienceqa_letter,
    scienceqa_letter,
    vlmevalkit_letter,
    vlmevalkit_prompt,
)

CHOICES = {"A": "a red apple", "B": "banana", "C": "cherry", "D": "Date palm"}


@pytest.mark.parametrize(
    ("answer", "official", "lmms"),
    [
        ("B", "B", "B"),
        ("b", "", "B"),
        ("B.", "", "B"),
        ("B. banana", "B", "B"),
        ("B.banana", "", "B"),
        ("b. banana", "", ""),
        (" B", "", "B"),
        ("The answer is B.", "B", ""),
        ("The answer is B!", "B", ""),
        ("The answer is B", "", ""),  # the pattern wants one more character
        ("The answer is A. The answer is B.", "", ""),
        ("D", "", ""),  # there are three choices
        ("The answer is Z.", "", ""),
        ("FAILED", "", ""),
        ("", "", ""),
        ("AB", "", ""),
    ],
)
def test_scienceqa(answer, official, lmms):
    assert (scienceqa_letter(answer, "xyz"), lmms_scienceqa_letter(answer, "xyz")) == (official, lmms)


@pytest.mark.parametrize(
    ("answer", "official", "lmms"),
    [
        ("B", "B", "B"),
        ("(B)", "B", "B"),
        ("B.", "B", "B"),
        ("The answer is B", "B", "B"),
        ("b", "", ""),
        ("A or B", "", "A"),  # lmms-eval takes the letter at the start
        ("B is a fruit that I like", "", "B"),  # the letter is not among the last four words
        ("It is a cherry", "C", "C"),
        ("banana and cherry", "", ""),
        ("The correct answer is **B**. Here is why: it is long and yellow", "B", "B"),
        ("date palm", "D", "D"),
        ("E", "", "E"),  # lmms-eval reads five letters whatever the choices
        ("Z", "", ""),
        ("", "", ""),
        ("Cannot determine the answer B", "", "B"),
        ("A small fruit is what I see", "", "A"),  # lmms-eval: starts with a letter
        ("cherry " + "very " * 20, "", "C"),  # longer than twice all choices: VLMEvalKit does not look into it
    ],
)
def test_mmbench(answer, official, lmms):
    assert (vlmevalkit_letter(answer, CHOICES), lmms_letter(answer, CHOICES)) == (official, lmms)


def test_vlmevalkit_prompt():
    wanted = "Hint: look\nQuestion: What?\nOptions:\nA. x\nB. y\nPlease select the correct answer from the options above. \n"
    assert vlmevalkit_prompt("What?", "look", ("x", "y")) == wanted
    assert vlmevalkit_prompt("What?", "", ("x",)).startswith("Question: What?")
