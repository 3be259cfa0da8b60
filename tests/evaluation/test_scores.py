"""Scores and sub-scores worked out by hand, what each protocol changes, and cases with nothing to divide by."""

import pytest

from evomoe.evaluation.average import paper_benchmarks
from evomoe.evaluation.benchmark import Question, Result
from evomoe.evaluation.benchmarks import BENCHMARKS, gqa, mmbench, mme, pope, sqa, textvqa, vqav2
from evomoe.evaluation.pictures import FilePicture
from evomoe.evaluation.reports import report
from evomoe.evaluation.statistics import bootstrap_error


def by_id(questions, *given):
    return {question.id: answer for question, answer in zip(questions, given, strict=True)}


def test_vqav2():
    made = [
        vqav2.VQAQuestion("1", "?", answer="red", type="what", answers=("red",) * 2 + ("blue",) * 8, answer_type="other"),
        vqav2.VQAQuestion("2", "?", answer="yes", type="is", answers=("yes",) * 10, answer_type="yes/no"),
        vqav2.VQAQuestion("3", "?", answer="2", type="what", answers=("2",) * 9 + ("two",), answer_type="number"),
    ]
    answers = by_id(made, "The red.", "Yes", "two")
    result = vqav2.score(made, answers)
    assert result.score == pytest.approx(100 * (0.6 + 0 + 1) / 3)  # all ten wrote "yes", and "Yes" is compared as it stands
    assert result.tables["answer type"]["other"] == {"accuracy": pytest.approx(60), "questions": 1}
    assert result.tables["question type"]["what"] == {"accuracy": pytest.approx(80), "questions": 2}
    assert vqav2.score(made, answers, "lmms-eval").score == pytest.approx(100 * (0.6 + 1 + 1) / 3)
    assert vqav2.score(made, by_id(made, "the", "", "x")).unparsable == 2
    with pytest.raises(ValueError, match="VLMEvalKit has no VQAv2; choose"):
        vqav2.score(made, answers, "vlmevalkit")


def test_textvqa():
    made = [textvqa.TextVQAQuestion("1", "?", answer="15", answers=("15",) * 3 + ("16.",) * 7)]
    assert textvqa.score(made, {"1": "15."}).score == pytest.approx(90)
    assert textvqa.score(made, {"1": "16"}, "lmms-eval").score == pytest.approx(100)
    assert textvqa.score(made, {"1": "16"}, "vlmevalkit").score == 0  # there the annotators' period stays
    result = BENCHMARKS["textvqa-ocr"].result(made, {"1": "?"}, "official")
    assert (result.benchmark, result.scorer, result.unparsable) == ("textvqa-ocr", "textvqa-ocr 1", 1)
    with pytest.raises(ValueError, match="without OCR words"):
        BENCHMARKS["textvqa-ocr"].score(made, {"1": "15"}, "vlmevalkit")


def test_gqa():
    made = [
        gqa.GQAQuestion("1", "?", answer="t-shirt", type="query", semantic="obj"),
        gqa.GQAQuestion("2", "?", answer="yes", type="verify", semantic="attr"),
        gqa.GQAQuestion("3", "?", answer="no", type="logical", semantic="attr"),
    ]
    result = gqa.score(made, by_id(made, "T-shirt..", "Yes.", "No "))
    assert result.score == pytest.approx(200 / 3)
    assert result.tables["kind"] == {"binary": {"accuracy": 50, "questions": 2}, "open": {"accuracy": 100, "questions": 1}}
    assert result.tables["semantic type"]["attr"]["accuracy"] == 50
    assert set(result.tables["structural type"]) == {"query", "verify", "logical"}
    assert gqa.score(made, by_id(made, "tshirt", "(yes)", " No.")).score == 0
    assert gqa.score(made, by_id(made, "tshirt", "(yes)", " No."), "lmms-eval").score == 100
    assert gqa.score(made, by_id(made, "T-shirt ", "yes.", "No\n"), "vlmevalkit").score == pytest.approx(200 / 3)
    assert gqa.score(made, by_id(made, "..", "", "x")).unparsable == 2


def scienceqa():
    picture, choices = FilePicture("x"), ("x1", "y2", "z3")
    return [
        sqa.SQAQuestion("1", "?", picture, "A", "natural science", choices=choices, hint="h", grade="grade3"),
        sqa.SQAQuestion("2", "?", picture, "B", "social science", choices=choices, grade="grade7"),
        sqa.SQAQuestion("3", "?", None, "C", "natural science", choices=choices, grade="grade12"),
    ]


def test_scienceqa():
    made = scienceqa()
    result = sqa.score(made, by_id(made, "A", "FAILED", "C. z3"))
    assert result.score == 50 and result.unparsable == 1
    assert result.tables["overall"]["all"]["accuracy"] == pytest.approx(200 / 3)
    assert result.tables["subject"]["natural science"] == {"accuracy": 100, "questions": 2}
    assert result.tables["grade"] == {"1-6": {"accuracy": 100, "questions": 1}, "7-12": {"accuracy": 50, "questions": 2}}
    assert result.tables["modality"] == {
        "text context": {"accuracy": 100, "questions": 1},
        "image context": {"accuracy": 50, "questions": 2},
        "no context": {"accuracy": 100, "questions": 1},
    }
    answers = by_id(made, "a", "The answer is B.", "it is z3")
    wanted = {"official": (50, 2), "lmms-eval": (50, 2), "vlmevalkit": (50, 1)}
    assert {name: (sqa.score(made, answers, name).score, sqa.score(made, answers, name).unparsable) for name in wanted} == wanted


def test_scienceqa_without_a_picture_is_no_crash():
    assert sqa.score(scienceqa()[2:], {"3": "C"}).score == 0


def of_pope(*labels):
    picture = FilePicture("x")
    splits = [split for split in pope.SPLITS for _ in labels]
    return [Question(f"{s}/{i}", "?", picture, label, s) for i, (s, label) in enumerate(zip(splits, labels * 3, strict=True))]


def test_pope():
    made = of_pope("yes", "yes", "no", "no")
    right = ["Yes", "Yes", "No", "No"]
    result = pope.score(made, by_id(made, *right, "Yes", "no", "yes", "No", *["No"] * 4))
    assert result.score == pytest.approx(100 * (1 + 0.5 + 0) / 3)
    assert result.tables["split"]["popular"] == {
        "accuracy": 50, "precision": 50, "recall": 50, "F1": 50, "yes ratio": 50, "questions": 4,
    }  # fmt: skip
    assert result.tables["split"]["adversarial"]["yes ratio"] == 0 and result.tables["split"]["all"]["questions"] == 12
    assert result.unit == "mean F1 of the splits, %"


def test_pope_of_a_model_that_never_says_yes_is_0():
    made = of_pope("yes", "no")
    for protocol in ("official", "lmms-eval", "vlmevalkit"):
        result = pope.score(made, by_id(made, *["No"] * 6), protocol)
        assert result.score == result.tables["split"]["all"]["precision"] == result.standard_error == 0


def test_pope_of_other_protocols():
    made = of_pope("yes", "yes", "no", "no")
    answers = by_id(made, *["Yes", "maybe", "Yes", "Yes"] * 3)
    official, lmms, kit = (pope.score(made, answers, name) for name in ("official", "lmms-eval", "vlmevalkit"))
    assert official.score == pytest.approx(200 / 3) and official.unparsable == 3  # "maybe" is a yes: precision 1/2, recall 1
    assert lmms.score == pytest.approx(50) and lmms.unparsable == 3  # precision 1/3; "maybe" is left out of recall: 1
    assert kit.score == pytest.approx(40)  # "maybe" is a no: recall 1/2
    ratios = [result.tables["split"]["all"]["yes ratio"] for result in (official, lmms, kit)]
    assert ratios == [100, 50, 75]  # lmms-eval's is the labels'
    assert [result.tables["split"]["all"]["accuracy"] for result in (official, lmms, kit)] == [50, 25, 25]


@pytest.mark.parametrize("protocol", ["official", "lmms-eval", "vlmevalkit"])
@pytest.mark.parametrize("copies", [1, 5])
def test_the_error_of_pope_is_over_pictures(protocol, copies):
    """Of 100 pictures half have all their questions answered right, the others all wrong: one draw each, however many they are.

    With the share p of right answers, all to be yes, F1 is 2p / (1 + p), whose slope at 1/2 is 8/9; p has the error 0.05.
    """
    made = [
        Question(f"{split}/{i}/{k}", "?", FilePicture(str(i)), "yes", split)
        for split in pope.SPLITS
        for i in range(100)
        for k in range(copies)
    ]
    result = pope.score(made, {question.id: "yes" if int(question.picture.key) % 2 else "no" for question in made}, protocol)
    assert result.score == pytest.approx(100 * 2 / 3)
    assert result.standard_error == pytest.approx(100 * 8 / 9 * 0.05, rel=0.1)


def of_mme(*subtasks):
    return [
        mme.MMEQuestion(f"{s}/{i}.jpg/{k}", f"Is it {k}? Please answer yes or no.", None, "no" if k - 1 else "yes", s, f"{s}/{i}.jpg", f"{i}.jpg")
        for s in subtasks
        for i in range(2)
        for k in (1, 2)
    ]  # fmt: skip


def test_mme():
    made = of_mme("color", "OCR", "code_reasoning")
    answers = by_id(made, *["Yes", "No", "yes", "Yes"], *["Yes", "No"] * 2, *["Church", "not sure", "No", "No"])
    result = mme.score(made, answers)
    rows = result.tables["subtask"]
    assert (rows["color"]["score"], rows["color"]["accuracy"], rows["color"]["accuracy+"]) == (125, 75, 50)
    assert (rows["OCR"]["score"], rows["code_reasoning"]["score"]) == (200, 50)
    assert result.score == 325 and result.tables["domain"]["cognition"]["score"] == 50
    assert result.unit == "perception, points of 400" and result.tables["domain"]["cognition"]["of"] == 200
    assert "count" in result.missing and "OCR" not in result.missing and len(result.missing) == 8
    assert result.unparsable == 1
    assert result.standard_error == pytest.approx(75)  # colour's pictures have 200 and 50 points: s / sqrt(2) = 75
    assert mme.score(made, answers, "vlmevalkit").unparsable == 2
    with pytest.raises(ValueError, match=r"color/0.jpg has 1 of its 2 questions"):
        mme.score(made[1:], answers)


def test_the_error_of_mme_is_over_pictures_and_of_subtasks_drawn_apart():
    """Colour's pictures have 200 and 50 points, so 125 with the error s / sqrt(2) = 75; OCR's 200 and 0: 100 with 100.

    Subtasks have pictures of their own, so that the squares of their errors add up: 75² + 100² = 125².
    """
    made = of_mme("color", "OCR", "code_reasoning", "text_translation")
    answers = by_id(
        made, *["Yes", "No", "Yes", "Yes"], *["Yes", "No", "No", "Yes"], *["Yes", "No", "Yes", "Yes"], *["Yes", "No"] * 2
    )
    result = mme.score(made, answers)
    assert result.score == 225 and result.standard_error == pytest.approx(125)
    errors = {name: row["standard error"] for name, row in result.tables["subtask"].items()}
    assert errors == pytest.approx({"color": 75, "OCR": 100, "code_reasoning": 75, "text_translation": 0})
    assert result.tables["domain"]["cognition"]["standard error"] == pytest.approx(75)


def of_mmbench():
    rows = [(3, "A"), (4, "A"), (1_000_003, "B"), (1_000_004, "B"), (2_000_003, "C")]
    return [
        mmbench.MMBenchQuestion(str(i), "?", None, answer, f"cat {i % 1_000_000}", str(i % 1_000_000), choices=("x1", "y2", "z3")[: 6 - i % 10], l2_category="all")
        for i, answer in rows
    ]  # fmt: skip


def test_mmbench():
    made = of_mmbench()
    result = mmbench.score(made, by_id(made, "A", "A", "B", "A", "it is z3"))
    assert result.score == 50 and result.standard_error == pytest.approx(50)
    assert [row["accuracy"] for row in result.tables["overall"].values()] == [50, 100, 80]
    assert result.tables["category"] == {"cat 3": {"accuracy": 100, "groups": 1}, "cat 4": {"accuracy": 0, "groups": 1}}
    assert result.tables["l2-category"] == {"all": {"accuracy": 50, "groups": 2}}
    assert mmbench.score(made, by_id(made, "B is a word among many here", "A", "B", "B", "C")).unparsable == 1
    assert mmbench.score(made, by_id(made, "b", "A", "B", "B", "C"), "lmms-eval").score == 50
    hidden = mmbench.MMBenchQuestion("5", "?", choices=("x", "y"))
    with pytest.raises(ValueError, match=r"mmbench: the right answers of this split are not public.*MMBench's server"):
        mmbench.score([*made, hidden], {})


@pytest.mark.parametrize(
    "made", [of_pope("yes", "no"), of_mme("color"), of_mmbench(), scienceqa()], ids=["pope", "mme", "mmbench", "sqa"]
)
def test_scores_do_not_depend_on_the_order(made):
    benchmark = {mme.MMEQuestion: "mme", mmbench.MMBenchQuestion: "mmbench", sqa.SQAQuestion: "sqa", Question: "pope"}[
        type(made[0])
    ]
    answers = {question.id: "No" if number % 3 else "A" for number, question in enumerate(made)}
    one, other = (BENCHMARKS[benchmark].score(questions, answers, "official") for questions in (made, made[::-1]))
    assert one.score == pytest.approx(other.score) and one.unparsable == other.unparsable


def test_bootstrap_error_is_that_of_a_mean():
    """100 units of 0 or 1, half of each: the mean's standard error is 0.05."""
    units = [(i % 2, 1) for i in range(100)]
    error = bootstrap_error(units, lambda sums: sums[0] / sums[1])
    assert error == pytest.approx(0.05, rel=0.1) and error == bootstrap_error(units, lambda sums: sums[0] / sums[1])


def test_a_score_that_lacks_parts_enters_no_average():
    whole = of_mme(*mme.SUBTASKS)
    names = [benchmark.name for benchmark in paper_benchmarks() if benchmark.name != "mme"]
    others = [Result(name, "official", "", 50.0, "%", 0.0, "", 1, 0) for name in names]

    def text(questions) -> str:
        right = {question.id: question.answer for question in questions}
        return report([*others, mme.BENCHMARK.result(questions, right, "official")])

    assert "AVG 57.14 = (vqav2" in text(whole) and "points of 2,000" in text(whole)
    lacking = text([question for question in whole if question.type not in ("posters", "OCR")])
    assert "AVG 5" not in lacking and "points of 1,600" in lacking
    assert "mme: no questions of posters, OCR were asked, so that its score enters no AVG." in lacking
    assert "AVG 57.14" in text([question for question in whole if question.type != "code_reasoning"])  # not of perception


def test_a_score_of_answers_that_nobody_could_read_is_called_so():
    asked = of_mme(*mme.SUBTASKS)
    said = "mme: not one answer could be read, so the score says nothing of what the model knows."
    for word, expected in (("perhaps", True), ("yes", False)):
        result = mme.BENCHMARK.result(asked, {question.id: word for question in asked}, "official")
        assert (said in report([result])) is expected
