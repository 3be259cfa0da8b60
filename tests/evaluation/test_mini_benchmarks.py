"""The mini world's sets run through the loaders, prompts and rules of the published ones."""

import json
import shutil
from pathlib import Path

import pytest

from evomoe import mini
from evomoe.evaluation import BENCHMARKS
from evomoe.evaluation.evaluate import evaluate_checkpoint
from evomoe.evaluation.evaluation_options import EvaluationOptions
from evomoe.evaluation.questions import find_data, load_questions

SMALL = mini.TestSizes(3, 3, 9, 3, 2, 1, 5)
MINI = [name for name in BENCHMARKS if name.startswith("mini-")]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mini") / "world"
    mini.write(folder, seed=0, sizes=mini.Sizes(2, 2, 2, 2, SMALL, SMALL))
    return folder


@pytest.fixture
def made(world, monkeypatch):
    monkeypatch.setattr(mini, "ensure", lambda training: world)


@pytest.mark.parametrize("name", MINI)
def test_right_answers_get_the_whole_score(name, made):
    benchmark = BENCHMARKS[name]
    folder = find_data(benchmark, None)
    questions = load_questions(benchmark, folder)
    result = benchmark.result(questions, {question.id: question.answer for question in questions}, "official")
    assert result.score == pytest.approx(2000 if name == "mini-mme" else 100) or "vqa" in name  # annotators disagree
    assert result.score > 85 and result.questions == len(questions) > 3 and result.unparsable == 0
    wrong = benchmark.result(questions, {question.id: "" for question in questions}, "official")
    assert wrong.score < 0.7 * result.score  # to POPE, an empty answer says yes


def test_all_of_them_and_their_average(made, workspace, tmp_path):
    text = evaluate_checkpoint(workspace / "model", MINI, EvaluationOptions(output=str(tmp_path / "out"), workers=0, limit=28))
    assert "AVG " in text and "mini-textvqa-ocr + mini-pope + mini-mme / 20" in text
    assert "points of 2,000" in text and "enters no AVG" not in text
    assert "(mini-vqav2" in text and "(vqav2" not in text
    for name in MINI:
        (result,) = (tmp_path / "out" / name).glob("result-*.json")
        assert json.loads(result.read_text())["benchmark"] == name


def test_a_folder_that_lacks_subtasks_of_mme_is_refused(world, tmp_path):
    benchmark = BENCHMARKS["mini-mme"]
    shutil.copytree(world / "test" / "mme", tmp_path / "mme")
    for subtask in ("posters", "code_reasoning"):
        (found,) = (tmp_path / "mme").rglob(subtask)
        shutil.rmtree(found)
    with pytest.raises(ValueError, match="mini-mme: no questions of posters, code_reasoning in .*`any_version`"):
        load_questions(benchmark, find_data(benchmark, str(tmp_path)))
    assert load_questions(benchmark, find_data(benchmark, str(tmp_path)), any_version=True)


def test_without_training_data_the_sets_are_the_same(world, tmp_path):
    mini.write(tmp_path / "short", seed=0, sizes=mini.Sizes(2, 2, 2, 2, SMALL, SMALL), training=False)
    files = {path.relative_to(world): path for path in world.rglob("*") if path.is_file()}
    kept = {name: path for name, path in files.items() if name.parts[0] != "train"}
    assert len(kept) > 100 and not (tmp_path / "short" / "train").exists()
    assert all((tmp_path / "short" / name).read_bytes() == path.read_bytes() for name, path in kept.items())


def test_another_split_is_a_data_root(world):
    options = [find_data(BENCHMARKS["mini-pope"], str(world / split)) for split in ("validation", "test")]
    validation, test = (load_questions(BENCHMARKS["mini-pope"], folder) for folder in options)
    assert {question.id for question in validation} == {question.id for question in test}
    assert [question.text for question in validation] != [question.text for question in test]
