"""Yes, no or neither, under every protocol; by hand."""

import pytest

from evomoe.evaluation.benchmarks.yes_no import exact_reading, lmms_mme_reading, mme_reading, pope_reading, vlmevalkit_reading


@pytest.mark.parametrize(
    ("answer", "official", "lmms", "vlmevalkit"),
    [
        ("Yes", "yes", "yes", "yes"),
        ("No", "no", "no", "no"),
        ("no", "no", "no", "no"),
        ("No.", "no", "", "no"),
        ("Yes.", "yes", "", "yes"),
        ("NO", "yes", "no", "no"),  # the official words are No, no and not alone
        ("nope", "yes", "", ""),
        ("no\n", "yes", "no", "no"),
        ("No!", "yes", "", "no"),
        ("(No)", "yes", "", "no"),
        ("No, there is not", "no", "", "no"),
        ("There is not", "no", "", ""),
        ("Yes. There is no cat", "yes", "", ""),  # the official rule stops at the period
        ("", "yes", "", ""),
        ("yes and no", "no", "", ""),
    ],
)
def test_pope(answer, official, lmms, vlmevalkit):
    assert (pope_reading(answer), exact_reading(answer), vlmevalkit_reading(answer)) == (official, lmms, vlmevalkit)


@pytest.mark.parametrize(
    ("answer", "official", "lmms", "vlmevalkit"),
    [
        ("Yes", "yes", "yes", "yes"),
        ("YES, it is", "yes", "yes", "yes"),
        ("not sure", "no", "no", ""),
        ("Know", "no", "no", ""),
        (" no", "no", "no", "no"),
        ("  no", "no", "no", "no"),
        ("   no", "", "no", "no"),
        ("Y", "", "yes", ""),
        ("n.", "", "no", ""),
        ("Church", "", "", ""),
        ("The answer is yes", "", "", "yes"),
        ("", "", "", ""),
    ],
)
def test_mme(answer, official, lmms, vlmevalkit):
    assert (mme_reading(answer), lmms_mme_reading(answer), vlmevalkit_reading(answer)) == (official, lmms, vlmevalkit)
