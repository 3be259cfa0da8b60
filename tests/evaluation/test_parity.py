"""The real answers of LLaVA-1.5-13B give the published scores, digit by digit, and its prompts are ours."""

import json

import parity
import pytest

from evomoe.data.prompts import LETTER_ANSWER
from evomoe.evaluation import BENCHMARKS, predictions
from evomoe.evaluation.benchmarks import gqa, mmbench, mme, pope, sqa, textvqa

pytestmark = pytest.mark.skipif(not parity.FOLDER.is_dir(), reason="the real answers are not here")


def test_pope():
    questions, answers, _ = parity.pope()
    wanted = parity.expected()["pope"]
    result = pope.BENCHMARK.result(questions, answers, "official")
    assert result.score == wanted["mean_f1_percent"] == 85.94688090539114
    for split in pope.SPLITS:
        row = {name: value for name, value in result.tables["split"][split].items() if name != "questions"}
        exact = {name: 100 * wanted[split][name.replace(" ", "_").lower()] for name in row}
        assert row == pytest.approx(exact, rel=1e-15)
        assert result.tables["split"][split]["questions"] == wanted[split]["n"]
    assert (result.unparsable, result.questions) == (0, 8910)
    assert 0.5 < result.standard_error < 1.5


def test_mme():
    questions, answers, _ = parity.of_mme("mme")
    wanted = parity.expected()["mme"]
    result = mme.BENCHMARK.result(questions, answers, "official")
    assert result.score == wanted["perception"] == 1531.3187274909965
    assert result.tables["domain"]["cognition"]["score"] == wanted["cognition"] == 295.3571428571429
    assert {name: row["score"] for name, row in result.tables["subtask"].items()} == {
        name: wanted[name] for name in (*mme.PERCEPTION, *mme.COGNITION)
    }
    assert result.unparsable == sum(mme.mme_reading(answer) == "" for answer in answers.values()) > 0


def test_mme_of_another_model_that_answers_in_sentences():
    questions, answers, _ = parity.of_mme("mme_lavin")
    wanted = parity.expected()["mme_lavin"]
    result = mme.BENCHMARK.result(questions, answers, "official")
    assert (result.score, result.tables["domain"]["cognition"]["score"]) == (wanted["perception"], wanted["cognition"])


def test_scienceqa():
    questions, answers, rows = parity.scienceqa()
    wanted = parity.expected()["sqa"]
    result = sqa.BENCHMARK.result(questions, answers, "official")
    assert result.score == wanted["img_percent"] == 71.64105106593951
    assert result.tables["overall"]["IMG"]["questions"] == wanted["img_total"]
    assert result.tables["overall"]["all"] == {"accuracy": wanted["all_percent"], "questions": wanted["all_total"]}
    for question, row in zip(questions, rows, strict=True):
        read = sqa.letters.scienceqa_letter(row["prediction"], question.choices)
        assert (read == question.answer) == row["score"]


def test_mmbench():
    questions, answers, _ = parity.of_mmbench()
    wanted = parity.expected()["mmbench_dev_20230712"]
    mmbench._check_rotations("the published table", questions)  # of 53 groups of four choices there are three rotations
    result = mmbench.BENCHMARK.result(questions, answers, "official")
    overall = result.tables["overall"]
    assert result.score / 100 == wanted["circular"] == 0.6768707482993197
    assert overall[mmbench.CIRCULAR]["groups"] == wanted["groups"]
    assert overall[mmbench.VANILLA]["accuracy"] / 100 == pytest.approx(wanted["vanilla_circ0"], rel=1e-15)
    assert overall[mmbench.VANILLA_ALL] == {
        "accuracy": pytest.approx(100 * wanted["vanilla_all_rows"], rel=1e-15),
        "questions": wanted["rows"],
    }


@pytest.mark.parametrize(
    ("benchmark", "made"),
    [
        (pope, parity.pope),
        (mme, lambda: parity.of_mme("mme")),
        (sqa, parity.scienceqa),
        (mmbench, parity.of_mmbench),
        (gqa, parity.of_gqa),
        (textvqa, parity.of_textvqa),
    ],
    ids=["pope", "mme", "sqa", "mmbench", "gqa", "textvqa-ocr"],
)
def test_prompts_are_llavas(benchmark, made):
    """A question is cut out of LLaVA's prompt, and ours about it must be LLaVA's again."""
    questions, _, rows = made()
    ours = [benchmark.prompt(question, "official").removesuffix(LETTER_ANSWER) for question in questions]
    assert ours == [parity.asked(row) for row in rows]
    assert len(ours) in benchmark.BENCHMARK.counts


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("pope", parity.pope),
        ("mme", lambda: parity.of_mme("mme")),
        ("mme", lambda: parity.of_mme("mme_lavin")),
        ("textvqa-ocr", parity.of_textvqa),
        ("sqa", parity.scienceqa),
        ("mmbench", parity.of_mmbench),
        ("gqa", parity.of_gqa),
    ],
    ids=["pope", "mme", "mme of LaVIN", "textvqa-ocr", "sqa", "mmbench", "gqa"],
)
def test_llavas_answer_files_are_matched(name, made, tmp_path):
    """LLaVA names the questions of the first three in its own way; all prompts hold the questions."""
    questions, _, rows = made()
    file = tmp_path / "merge.jsonl"
    records = [
        {
            "question_id": row["input"].get("question_id", row["input"].get("index")),
            "prompt": row["input"]["prompt"],
            "text": row["prediction"],
        }
        for row in rows
    ]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    read = predictions.read(BENCHMARKS[name], questions, file)
    assert read == {question.id: row["prediction"] for question, row in zip(questions, rows, strict=True)}
