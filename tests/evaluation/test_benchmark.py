"""What a row of `BENCHMARKS` declares, and that nothing outside a benchmark's own file knows it by name."""

import ast
from dataclasses import fields, replace
from pathlib import Path

import pytest

import evomoe.evaluation
from evomoe.evaluation import BENCHMARKS
from evomoe.evaluation.benchmark import Findings, Result


def test_a_result_is_what_the_rule_found_and_by_which_rule(quiz, questions):
    answers = {question.id: "red" for question in questions}
    found = quiz.score(questions, answers, "official")
    result = replace(quiz, version=2).result(questions, answers, "lmms-eval")
    assert (result.benchmark, result.protocol, result.scorer, result.questions) == ("quiz", "lmms-eval", "quiz 2", 7)
    assert {name: getattr(result, name) for name in vars(found)} == vars(found)
    assert {field.name for field in fields(Findings)} < {field.name for field in fields(Result)}


@pytest.mark.parametrize("name", [name for name, benchmark in BENCHMARKS.items() if benchmark.mini])
def test_a_small_benchmark_has_the_rule_of_the_large_one(name):
    large = BENCHMARKS[name.removeprefix("mini-")]
    assert BENCHMARKS[name].scorer == large.scorer == f"{large.name} 1"
    assert (BENCHMARKS[name].column, BENCHMARKS[name].divisor) == (large.column, large.divisor)


def test_no_benchmark_is_known_by_name_outside_its_file():
    """The mini world writes each benchmark's files, so it knows whose they are. easy-VQA is data to train on, too."""
    package = Path(evomoe.__file__).parent
    for path in package.rglob("*.py"):
        if path.parent.name == "benchmarks" or path.is_relative_to(package / "mini"):
            continue
        texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        own = {*BENCHMARKS, "mini-", "-ocr"} - ({"easy-vqa"} if path.parent.name != "evaluation" else set())
        assert not texts & own, path
