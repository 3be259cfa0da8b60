"""VQAv2: questions about COCO's pictures with ten annotators' answers each; 214,354 of them in val.

Data, below ``DIR/vqav2``: ``v2_mscoco_val2014_annotations.json``, ``v2_OpenEnded_mscoco_val2014_questions.json`` and
``val2014/``; or, for the server, ``llava_vqav2_mscoco_test-dev2015.jsonl`` or ``v2_OpenEnded_mscoco_test2015_questions.json`` and
``test2015/``; or the parquet of lmms-lab-encoder/VQAv2, split validation. Papers report test-dev, whose answers are not public:
a score on val is another number.

Rule: ``vqaEval.py`` (GT-Vision-Lab/VQA): the share of the other nine annotators that agree, three being enough, averaged over
leaving out each. Answers are normalised unless all ten annotators wrote the same; then they are compared as they stand, so
that "Yes" is wrong where all wrote "yes". lmms-eval normalises always. VLMEvalKit has no VQAv2. An answer of which nothing is
left after normalisation is unparsable.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evomoe.data.prompts import SHORT_ANSWER
from evomoe.evaluation.benchmark import Benchmark, Findings, ProtocolName, Question
from evomoe.evaluation.benchmarks.vqa_answers import (
    Remembered,
    evalai_answer,
    leave_one_out,
    lmms_vqa_answer,
    one_line,
    ten_answers,
    vqa_answer,
)
from evomoe.evaluation.checks import check_labels, check_unique
from evomoe.evaluation.data_folder import DataFile, DataFolder
from evomoe.evaluation.fields import values
from evomoe.evaluation.pictures import CellPicture, Picture, picture_file
from evomoe.evaluation.statistics import accuracy, accuracy_by_type, error_of_mean
from evomoe.support.files import write_text
from evomoe.support.text import counted

ORIGIN = "https://visualqa.org/download.html"
LLAVA = "https://github.com/haotian-liu/LLaVA/blob/main/docs/Evaluation.md (eval.zip)"
ANNOTATIONS = DataFile("v2_mscoco_val2014_annotations.json", ORIGIN)
VAL = DataFile("v2_OpenEnded_mscoco_val2014_questions.json", ORIGIN)
TEST_DEV = DataFile("llava_vqav2_mscoco_test-dev2015.jsonl", LLAVA)
LLAVA_TEST = DataFile("llava_vqav2_mscoco_test2015.jsonl", LLAVA)
TEST = DataFile("v2_OpenEnded_mscoco_test2015_questions.json", ORIGIN)
REPOSITORY, SIZE = "lmms-lab-encoder/VQAv2", "44.8 GB"
SERVER = "https://eval.ai/web/challenges/challenge-page/830"


@dataclass(frozen=True)
class VQAQuestion(Question):
    """A question; its type is VQA's question type, such as "what color is the".

    Attributes:
        answers: the ten annotators'; none on the test split.
        answer_type: "yes/no", "number" or "other".
        server_ids: every id that the server wants answered, if they are more than these questions'.
    """

    answers: tuple[str, ...] = ()
    answer_type: str = ""
    server_ids: tuple[str, ...] = field(default=(), repr=False, compare=False)


def load(folder: DataFolder) -> list[VQAQuestion]:
    """Val if its annotations are there, else test-dev or test; ids are VQA's question ids."""
    if folder.find(ANNOTATIONS) is not None:
        return _val(folder)
    if folder.find(TEST_DEV, LLAVA_TEST, TEST) is not None:
        return _test(folder)
    return _from_parquet(folder)


def _val(folder: DataFolder) -> list[VQAQuestion]:
    path, asked = folder.need(ANNOTATIONS), folder.need(VAL)
    (annotations,) = values(folder.json(path), str(path), "annotations", kind=list)
    known = {identity: (text, image) for identity, text, image in _official(folder, asked, "val2014")}
    images, questions = folder.images("val2014"), []
    for number, record in enumerate(annotations, 1):
        where = f"{path}, record {number}"
        (identity,) = values(record, where, "question_id", kind=str | int)
        if str(identity) not in known:
            raise ValueError(f"{where}: question {identity} is not in {asked}. Are the two files of one version?")
        text, image = known[str(identity)]
        if (name := _name(record, where, "val2014")) != image:
            raise ValueError(
                f"{where}: question {identity} is about {name}, but in {asked} about {image}. Are the two files of one version?"
            )
        questions.append(_question(record, text, picture_file(images, name, where), where))
    check_unique(str(path), [question.id for question in questions])
    annotated = {question.id for question in questions}
    if missing := [identity for identity in known if identity not in annotated]:
        raise ValueError(
            f"{path}: no annotation for {counted(len(missing), 'question')} of {asked}, first {missing[0]}. "
            "Are the two files of one version?"
        )
    return questions


def _test(folder: DataFolder) -> list[VQAQuestion]:
    images = folder.images("test2015")
    path = folder.need(TEST_DEV, LLAVA_TEST, TEST)
    whole = folder.find(LLAVA_TEST, TEST)
    server_ids = tuple(identity for identity, _, _ in _asked(folder, whole)) if whole else ()
    return [
        VQAQuestion(identity, text, picture_file(images, image, f"{path}, question {identity}"), server_ids=server_ids)
        for identity, text, image in _asked(folder, path)
    ]


def _asked(folder: DataFolder, path: Path) -> list[tuple[str, str, str]]:
    """Id, text and picture of a test file's questions, in LLaVA's format or the official one."""
    if path.suffix != ".jsonl":
        return _official(folder, path, "test2015")
    found = []
    for number, record in enumerate(folder.json_lines(path), 1):
        where = f"{path}, record {number}"
        (identity,) = values(record, where, "question_id", kind=str | int)
        text, image = values(record, where, "text", "image", kind=str)
        found.append((str(identity), text.removesuffix(SHORT_ANSWER), image))
    return found


def _official(folder: DataFolder, path: Path, split: str) -> list[tuple[str, str, str]]:
    """Id, text and picture of the questions of an official file."""
    (records,) = values(folder.json(path), str(path), "questions", kind=list)
    found = []
    for number, record in enumerate(records, 1):
        where = f"{path}, record {number}"
        (identity,) = values(record, where, "question_id", kind=str | int)
        (text,) = values(record, where, "question", kind=str)
        found.append((str(identity), text, _name(record, where, split)))
    check_unique(str(path), [identity for identity, _, _ in found])
    return found


def _name(record: Any, where: str, split: str) -> str:
    """The name that COCO gives the picture of a record."""
    (image,) = values(record, where, "image_id", kind=int)
    return f"COCO_{split}_{image:012d}.jpg"


def _from_parquet(folder: DataFolder) -> list[VQAQuestion]:
    rows = folder.parquet(REPOSITORY, None, "validation", SIZE)
    pictures: dict[Any, CellPicture] = {}
    questions = []
    for number, row in enumerate(rows.remove_columns("image")):
        where = f"{REPOSITORY}, row {number}"
        (text,), (image,) = values(row, where, "question", kind=str), values(row, where, "image_id")
        picture = pictures.setdefault(image, CellPicture(rows, number, f"{REPOSITORY}/{image}", root=folder.path))
        questions.append(_question(row, text, picture, where))
    return questions


def _question(record: Any, text: str, picture: Picture, where: str) -> VQAQuestion:
    (identity,) = values(record, where, "question_id", kind=str | int)
    names = ("multiple_choice_answer", "question_type", "answer_type")
    answer, question_type, answer_type = values(record, where, *names, kind=str)
    (answers,) = values(record, where, "answers")
    ten = ten_answers(answers, f"{where}, question {identity}")
    return VQAQuestion(str(identity), text, picture, answer, question_type, answers=ten, answer_type=answer_type)


def prompt(question: VQAQuestion, protocol: ProtocolName) -> str:
    """Raises ValueError: VLMEvalKit has no VQAv2."""
    _check_protocol(protocol)
    return question.text + SHORT_ANSWER


def _check_protocol(protocol: ProtocolName) -> None:
    if protocol == "vlmevalkit":
        raise ValueError("vqav2: VLMEvalKit has no VQAv2; choose the protocol official or lmms-eval.")


def score(questions: Sequence[VQAQuestion], answers: Mapping[str, str], protocol: ProtocolName = "official") -> Findings:
    """VQA accuracy.

    Raises:
        ValueError: the right answers are not public, or VLMEvalKit's protocol is asked for.
    """
    _check_protocol(protocol)
    check_labels(BENCHMARK.name, questions, SERVER)
    always = protocol == "lmms-eval"
    normalise = Remembered(lmms_vqa_answer if always else vqa_answer)
    points = [_points(question.answers, answers[question.id], normalise, always) for question in questions]
    return Findings(
        score=accuracy(points)["accuracy"],
        unit="VQA accuracy %",
        standard_error=100 * error_of_mean(points),
        error_method="of the mean over questions",
        unparsable=sum(not normalise(answers[question.id]) for question in questions),
        tables={
            "answer type": accuracy_by_type([question.answer_type for question in questions], points),
            "question type": accuracy_by_type([question.type for question in questions], points),
        },
    )


def _points(annotators: Sequence[str], answer: str, normalise: Callable[[str], str], always: bool) -> float:
    answer, annotators = one_line(answer), [one_line(annotator) for annotator in annotators]
    if always or len(set(annotators)) > 1:
        answer, annotators = normalise(answer), [normalise(annotator) for annotator in annotators]
    return leave_one_out(answer, annotators)


def submit(questions: Sequence[VQAQuestion], answers: Mapping[str, str], folder: Path) -> list[Path]:
    """``vqav2.json`` for EvalAI, with LLaVA's treatment of answers; what the server wants beside these questions is "".

    The server wants all of test2015, also for its test-dev phase; the ids come from ``llava_vqav2_mscoco_test2015.jsonl`` or the
    official test questions, one of which must lie beside the test-dev file.

    Raises:
        ValueError: neither does, so that the server would refuse the file.
    """
    if questions and not questions[0].answer and not questions[0].server_ids:
        raise ValueError(
            f"the server wants every id of test2015: put {LLAVA_TEST.path} or {TEST.path} beside the test-dev file, and run the same "
            "command again; nothing is asked anew."
        )
    identities = dict.fromkeys([question.id for question in questions])
    identities.update(dict.fromkeys(questions[0].server_ids if questions else ()))
    written = [{"question_id": int(identity), "answer": evalai_answer(answers.get(identity, ""))} for identity in identities]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "vqav2.json", json.dumps(written))
    return [folder / "vqav2.json"]


BENCHMARK = Benchmark(
    "vqav2", "VQAv2: short answers, ten annotators; val is scored here, test-dev by its server.", load, prompt, score, 128,
    submit=submit, counts=(214354, 107394, 447793), column="VQAv2",
)  # fmt: skip
