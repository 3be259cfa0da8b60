"""ScienceQA: school questions with two to five choices; 4,241 in the test split, 2,017 of them with a picture.

Data, below ``DIR/sqa``: ``problems.json``, ``pid_splits.json`` and ``images/test/PID/image.png``; or the parquet of
lmms-lab-encoder/ScienceQA, which has the questions with a picture alone.

Rule: LLaVA's ``eval_science_qa.py``: accuracy over the questions with a picture (IMG), and over all. An answer that gives no
letter of a choice is unparsable, and wrong; nothing is guessed. The official script leaves a question without an answer out of
IMG; here it counts as wrong. lmms-eval takes small letters and wants nothing but the letter, or the letter and a period.
VLMEvalKit takes a letter among the last words, or the only choice whose text occurs in the answer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomoe.data.prompts import LETTER_ANSWER
from evomoe.evaluation.benchmark import Benchmark, Findings, ProtocolName, Question, Table
from evomoe.evaluation.benchmarks import letters
from evomoe.evaluation.data_folder import DataFile, DataFolder
from evomoe.evaluation.fields import texts, values
from evomoe.evaluation.pictures import CellPicture, Picture, picture_file
from evomoe.evaluation.statistics import accuracy, accuracy_by_type, error_of_mean

ORIGIN = "https://github.com/lupantech/ScienceQA/tree/main/data/scienceqa"
PROBLEMS, SPLITS = DataFile("problems.json", ORIGIN), DataFile("pid_splits.json", ORIGIN)
REPOSITORY, SIZE = "lmms-lab-encoder/ScienceQA", "1.34 GB"


@dataclass(frozen=True)
class SQAQuestion(Question):
    """A question with choices; its type is the subject.

    Attributes:
        choices: their texts, A first.
        hint: what stands before the question; may be empty.
        grade: such as "grade4".
        topic, category, skill: finer and finer.
    """

    choices: tuple[str, ...] = ()
    hint: str = ""
    grade: str = ""
    topic: str = ""
    category: str = ""
    skill: str = ""


def load(folder: DataFolder) -> list[SQAQuestion]:
    """Ids are the problems' numbers; those of the parquet, which has none, are its rows'."""
    if folder.find(PROBLEMS) is None:
        return _from_parquet(folder)
    path = folder.need(PROBLEMS)
    problems, splits = folder.json(path), folder.json(folder.need(SPLITS))
    (test,) = values(splits, str(folder.need(SPLITS)), "test", kind=list)
    images, questions = folder.images("images/test"), []
    for pid in test:
        where = f"{path}, problem {pid}"
        (problem,) = values(problems, where, pid)
        (name,) = values(problem, where, "image")
        picture = picture_file(images, f"{pid}/{name}", where) if name else None
        questions.append(_question(str(pid), problem, picture, where))
    return questions


def _from_parquet(folder: DataFolder) -> list[SQAQuestion]:
    rows = folder.parquet(REPOSITORY, "ScienceQA-IMG", "test", SIZE)
    return [
        _question(
            str(number), row, CellPicture(rows, number, f"{REPOSITORY}/{number}", root=folder.path), f"{REPOSITORY}, row {number}"
        )
        for number, row in enumerate(rows.remove_columns("image"))
    ]


def _question(identity: str, problem: Any, picture: Picture | None, where: str) -> SQAQuestion:
    text, subject = values(problem, where, "question", "subject", kind=str)
    (answer,), (hint,) = values(problem, where, "answer", kind=int), values(problem, where, "hint")
    choices = texts(problem, where, "choices")
    if not 0 <= answer < len(choices) <= 5:
        raise ValueError(
            f"{where}: the answer is choice {answer} of {len(choices)}, counted from 0; ScienceQA has at most 5 choices."
        )
    finer: dict[str, Any] = {name: problem.get(name) or "" for name in ("grade", "topic", "category", "skill")}
    letter = letters.LETTERS[answer]
    return SQAQuestion(identity, text, picture, letter, subject, choices=choices, hint=hint or "", **finer)


def prompt(question: SQAQuestion, protocol: ProtocolName) -> str:
    if protocol == "vlmevalkit":
        return letters.vlmevalkit_prompt(question.text, question.hint, question.choices)
    context = f"Context: {question.hint}\n" if question.hint else ""
    return f"{context}{question.text}\n{letters.lettered(question.choices)}{LETTER_ANSWER}"


def _vlmevalkit_letter(answer: str, choices: Sequence[str]) -> str:
    return letters.vlmevalkit_letter(answer, dict(zip(letters.LETTERS, choices, strict=False)))


READINGS: dict[str, Callable[[str, Sequence[str]], str]] = {
    "official": letters.scienceqa_letter,
    "lmms-eval": letters.lmms_scienceqa_letter,
    "vlmevalkit": _vlmevalkit_letter,
}


def score(questions: Sequence[SQAQuestion], answers: Mapping[str, str], protocol: ProtocolName = "official") -> Findings:
    """Accuracy over the questions with a picture; over all, by subject, grade and modality in the tables."""
    readings = [READINGS[protocol](answers[question.id], question.choices) for question in questions]
    points = [float(reading == question.answer) for reading, question in zip(readings, questions, strict=True)]
    image = [point for point, question in zip(points, questions, strict=True) if question.picture is not None]
    return Findings(
        score=accuracy(image)["accuracy"],
        unit="accuracy of the questions with a picture, %",
        standard_error=100 * error_of_mean(image),
        error_method="of the mean over questions",
        unparsable=readings.count(""),
        tables={
            "overall": {"IMG": accuracy(image), "all": accuracy(points)},
            "subject": accuracy_by_type([question.type for question in questions], points),
            "grade": accuracy_by_type([_grades(question.grade) for question in questions], points),
            "modality": _by_modality(questions, points),
        },
    )


def _grades(grade: str) -> str:
    number = grade.removeprefix("grade")
    return "unknown" if not number.isdigit() else "1-6" if int(number) <= 6 else "7-12"


def _by_modality(questions: Sequence[SQAQuestion], points: Sequence[float]) -> Table:
    """As ScienceQA reports it: a question with hint and picture is in both of the first two rows."""
    kinds = {
        "text context": [bool(question.hint) for question in questions],
        "image context": [question.picture is not None for question in questions],
        "no context": [not question.hint and question.picture is None for question in questions],
    }
    return {
        name: accuracy([point for point, is_in in zip(points, member, strict=True) if is_in]) for name, member in kinds.items()
    }


BENCHMARK = Benchmark(
    "sqa", "ScienceQA: school questions with choices; those with a picture are the score.", load, prompt, score, 1024,
    counts=(4241, 2017), column="SQA",
)  # fmt: skip
