"""Seven questions about three pictures, and a model that answers them differently."""

from collections.abc import Mapping, Sequence

import pytest
import torch
from PIL import Image
from quiz_texts import TEXTS
from tiny import make_llava

from evomoe import upcycle
from evomoe.evaluation import BENCHMARKS, Benchmark, Question
from evomoe.evaluation.benchmark import Findings
from evomoe.evaluation.evaluation_options import EvaluationOptions
from evomoe.evaluation.generation import Answerer
from evomoe.evaluation.pictures import FilePicture
from evomoe.evaluation.statistics import accuracy_by_type, error_of_mean


@pytest.fixture
def questions(tmp_path) -> list[Question]:
    """Seven questions of five lengths about three pictures."""
    for i, colour in enumerate(("red", "blue", "white")):
        Image.new("RGB", (16, 16), colour).save(tmp_path / f"{i}.png")
    kinds = ("color", "yes/no", "shape")
    return [
        Question(f"q{i}", text, FilePicture(str(tmp_path / f"{i % 3}.png")), "red", kinds[i % 3]) for i, text in enumerate(TEXTS)
    ]


@pytest.fixture
def model():
    """A sparse model that gives different answers to different questions."""
    torch.manual_seed(3)
    dense = make_llava().eval()
    for parameter in dense.parameters():
        parameter.data.mul_(4)
    return upcycle(dense, expert_init="noise", init_options={"std": 0.3}, num_experts_per_tok=2)


@pytest.fixture
def quiz(monkeypatch, questions) -> Benchmark:
    """A benchmark of the seven questions, in which every answer that is not empty is right."""

    def score(asked: Sequence[Question], answers: Mapping[str, str], protocol) -> Findings:
        points = [float(bool(answers[question.id])) for question in asked]
        tables = {"question type": accuracy_by_type([question.type for question in asked], points)}
        total = 100 * sum(points) / len(points)
        return Findings(total, "accuracy %", 100 * error_of_mean(points), "", 0, tables)

    benchmark = Benchmark(
        "quiz", "Seven questions.", lambda folder: questions, lambda question, protocol: question.text, score, max_new_tokens=3
    )  # fmt: skip
    monkeypatch.setitem(BENCHMARKS, "quiz", benchmark)
    return benchmark


@pytest.fixture
def options(tmp_path) -> EvaluationOptions:
    return EvaluationOptions(output=str(tmp_path / "out"), batch_size=2, workers=0)


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """The prompts that a model has really answered."""
    asked: list[str] = []
    generate = Answerer._generate

    def counting(self, prompts, batch):
        asked.extend(prompts.asked[i].where.split("'")[1] for i in batch.index)
        return generate(self, prompts, batch)

    monkeypatch.setattr(Answerer, "_generate", counting)
    return asked
