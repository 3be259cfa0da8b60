"""GQA: questions made from scene graphs, one right answer each; 12,578 in testdev-balanced, about 398 pictures.

Data, below ``DIR/gqa``: ``testdev_balanced_questions.json`` and ``images/`` (or both in ``data/``, as in LLaVA's folders); or the
parquet of lmms-lab-encoder/GQA, whose questions and pictures are two configurations.

Rule: the answer without periods at its end and in small letters equals the right one, as LLaVA prepares answers for GQA's
``eval.py``; the structural type "query" is open, the others are binary. Validity, plausibility and grounding need files that GQA
v1.2 does not have for testdev. lmms-eval drops every punctuation mark on both sides. VLMEvalKit strips white space alone, so
that "yes." is wrong. An empty answer is unparsable.
"""

import json
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomoe.data.prompts import SHORT_ANSWER
from evomoe.evaluation.benchmark import Benchmark, Findings, ProtocolName, Question
from evomoe.evaluation.data_folder import DataFile, DataFolder
from evomoe.evaluation.fields import values
from evomoe.evaluation.pictures import CellPicture, Picture, picture_file
from evomoe.evaluation.statistics import accuracy, accuracy_by_type, error_of_mean
from evomoe.support.files import write_text

ORIGIN = "https://cs.stanford.edu/people/dorarad/gqa/download.html"
QUESTIONS = (
    DataFile("testdev_balanced_questions.json", ORIGIN),
    DataFile("data/testdev_balanced_questions.json", ORIGIN),
    DataFile("data/questions1.2/testdev_balanced_questions.json", ORIGIN),
)
REPOSITORY = "lmms-lab-encoder/GQA"
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def prediction(answer: str) -> str:
    """An answer as LLaVA writes it for GQA's script."""
    return answer.rstrip(".").lower()


def _lmms_answer(answer: str) -> str:
    return answer.strip().lower().translate(_NO_PUNCTUATION)


def _vlmevalkit_answer(answer: str) -> str:
    return answer.strip().lower()


# What is compared, of the model's answer and of the right one.
NORMALISERS: dict[str, tuple[Callable[[str], str], Callable[[str], str]]] = {
    "official": (prediction, str),
    "lmms-eval": (_lmms_answer, _lmms_answer),
    "vlmevalkit": (_vlmevalkit_answer, _vlmevalkit_answer),
}


@dataclass(frozen=True)
class GQAQuestion(Question):
    """A question; its type is the structural one: query, verify, logical, choose or compare.

    Attributes:
        semantic: the semantic type: rel, attr, obj, cat or global.
    """

    semantic: str = ""


def load(folder: DataFolder) -> list[GQAQuestion]:
    """Ids are GQA's; questions that are not in the balanced set are left out, as GQA's script does."""
    path = folder.find(*QUESTIONS)
    if path is None:
        return _from_parquet(folder)
    records = folder.json(path)
    images, questions = folder.images("images", "data/images"), []
    for identity in records:
        where = f"{path}, question {identity}"
        (image,) = values(records[identity], where, "imageId", kind=str)
        questions += _question(identity, records[identity], picture_file(images, f"{image}.jpg", where), where)
    return questions


def _from_parquet(folder: DataFolder) -> list[GQAQuestion]:
    shown = folder.parquet(REPOSITORY, "testdev_balanced_images", "testdev")
    places = {image: number for number, image in enumerate(shown["id"])}
    questions = []
    for number, row in enumerate(folder.parquet(REPOSITORY, "testdev_balanced_instructions", "testdev")):
        where = f"{REPOSITORY}, row {number}"
        identity, image = values(row, where, "id", "imageId", kind=str)
        if image not in places:
            raise ValueError(f"{where}: the picture {image!r} is not in testdev_balanced_images.")
        questions += _question(identity, row, CellPicture(shown, places[image], f"{REPOSITORY}/{image}", root=folder.path), where)
    return questions


def _question(identity: str, record: Any, picture: Picture, where: str) -> list[GQAQuestion]:
    text, answer = values(record, where, "question", "answer", kind=str)
    types, balanced = values(record, where, "types", "isBalanced")
    structural, semantic = values(types, where, "structural", "semantic", kind=str)
    return [GQAQuestion(identity, text, picture, answer, structural, semantic=semantic)] if balanced else []


def prompt(question: GQAQuestion, protocol: ProtocolName) -> str:
    """The same under every protocol."""
    return question.text + SHORT_ANSWER


def score(questions: Sequence[GQAQuestion], answers: Mapping[str, str], protocol: ProtocolName = "official") -> Findings:
    """Accuracy; by structural and semantic type, and of binary and open questions, in the tables."""
    given, right = NORMALISERS[protocol]
    points = [float(given(answers[question.id]) == right(question.answer)) for question in questions]
    return Findings(
        score=accuracy(points)["accuracy"],
        unit="accuracy %",
        standard_error=100 * error_of_mean(points),
        error_method="of the mean over questions",
        unparsable=sum(not prediction(answers[question.id]).strip() for question in questions),
        tables={
            "kind": accuracy_by_type(["open" if question.type == "query" else "binary" for question in questions], points),
            "structural type": accuracy_by_type([question.type for question in questions], points),
            "semantic type": accuracy_by_type([question.semantic for question in questions], points),
        },
    )


def submit(questions: Sequence[GQAQuestion], answers: Mapping[str, str], folder: Path) -> list[Path]:
    """``testdev_balanced_predictions.json`` for GQA's script."""
    written = [{"questionId": question.id, "prediction": prediction(answers[question.id])} for question in questions]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "testdev_balanced_predictions.json", json.dumps(written))
    return [folder / "testdev_balanced_predictions.json"]


BENCHMARK = Benchmark(
    "gqa", "GQA: one right answer, compared as a whole; testdev-balanced.", load, prompt, score, 128, submit=submit,
    counts=(12578,), column="GQA",
)  # fmt: skip
