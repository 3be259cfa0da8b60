"""The average of the paper's tables."""

import pytest

from evomoe.evaluation.average import averages, paper_benchmarks, share_in_average
from evomoe.paper.tables import experts_curve
from evomoe.paper.tables.table import IN_SMALL, SEVEN

PUBLISHED = {
    "LLaVA-1.5-7B": ((78.5, 62.0, 66.8, 58.2, 85.9, 1510.7, 64.3), 70.18),
    "LLaVA-1.5-13B": ((80.0, 63.3, 71.6, 61.3, 85.9, 1531.3, 67.7), 72.34),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_average(model):
    names = ("vqav2", "gqa", "sqa", "textvqa-ocr", "pope", "mme", "mmbench")
    scores, wanted = PUBLISHED[model]
    given = dict(zip(names, scores, strict=True)) | {"textvqa": 1.0, "easy-vqa": 99.0}
    ((formula, average),) = averages(given).items()
    assert round(average, 2) == wanted
    assert formula == "(vqav2 + gqa + sqa + textvqa-ocr + pope + mme / 20 + mmbench) / 7"
    small = {f"mini-{name}": 10.0 for name in names} | {"mini-mme": 200.0}
    both = averages(given | small)
    assert (
        both[formula] == average
        and both["(mini-vqav2 + mini-gqa + mini-sqa + mini-textvqa-ocr + mini-pope + mini-mme / 20 + mini-mmbench) / 7"] == 10
    )
    del given["textvqa-ocr"]
    assert averages(given | {"mini-textvqa-ocr": 1.0}) == {}


def test_the_papers_columns_stand_in_one_place():
    names = ("vqav2", "gqa", "sqa", "textvqa-ocr", "pope", "mme", "mmbench")
    assert tuple(benchmark.name for benchmark in paper_benchmarks()) == names
    assert SEVEN == ("VQAv2", "GQA", "SQA", "TextVQA", "POPE", "MME", "MMBench")
    assert dict(zip(SEVEN, [f"mini-{name}" for name in names], strict=True)) == IN_SMALL
    assert {
        "all seven": tuple(f"mini-{name}" for name in names),
        "image-heavy: VQAv2, GQA, POPE, MME": ("mini-vqav2", "mini-gqa", "mini-pope", "mini-mme"),
        "text-dense: TextVQA, ScienceQA": ("mini-textvqa-ocr", "mini-sqa"),
    } == experts_curve.GROUPS


def test_only_mmes_score_is_divided():
    shares = {benchmark.name: share_in_average(benchmark.name, 100.0) for benchmark in paper_benchmarks(mini=True)}
    assert {name for name, share in shares.items() if share != 100} == {"mini-mme"} and shares["mini-mme"] == 5
    row = {"seeds": {"0": {"experts_per_token": dict.fromkeys(shares, 2.0), "scores": dict.fromkeys(shares, 100.0)}}}
    assert experts_curve.point(row, ("mini-gqa", "mini-mme")) == (2.0, 52.5, 0.0)
