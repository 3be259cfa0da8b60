"""TextVQA: 5,000 questions about words in pictures; ``textvqa`` without, ``textvqa-ocr`` with the words that an OCR program read.

Data, below ``DIR/textvqa`` for both: ``TextVQA_0.5.1_val.json`` and ``train_images/``, and ``TextVQA_Rosetta_OCR_v0.2_val.json``
for ``textvqa-ocr``; or the parquet of lmms-lab-encoder/textvqa, split validation, which has the OCR words too. LLaVA's and
EvoMoE's numbers are with them; they are worth about ten points, so that the two are never compared.

Rule: ``m4c_evaluator.py``: both sides as EvalAI's processor writes them, leave-one-out over ten annotators. lmms-eval's number
is the same, its prompt writes the question with one capital at its start and small letters after it, and has no OCR words
unless it is told to. VLMEvalKit lets the period beside a digit stand, and has no OCR words. An answer of which nothing is left
after normalisation is unparsable.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from evomoe.data.prompts import OCR_MARK, SHORT_ANSWER
from evomoe.evaluation.benchmark import Benchmark, Findings, ProtocolName, Question
from evomoe.evaluation.benchmarks.vqa_answers import (
    Remembered,
    evalai_answer,
    leave_one_out,
    ten_answers,
    vlmevalkit_vqa_answer,
)
from evomoe.evaluation.data_folder import DataFile, DataFolder
from evomoe.evaluation.fields import texts, values
from evomoe.evaluation.foreign_answers import ForeignAnswer, ForeignFiles, Key, Pairing
from evomoe.evaluation.pictures import CellPicture, Picture, picture_file
from evomoe.evaluation.statistics import accuracy, error_of_mean

ANNOTATIONS = DataFile("TextVQA_0.5.1_val.json", "https://dl.fbaipublicfiles.com/textvqa/data/TextVQA_0.5.1_val.json")
OCR = DataFile(
    "TextVQA_Rosetta_OCR_v0.2_val.json", "https://dl.fbaipublicfiles.com/textvqa/data/TextVQA_Rosetta_OCR_v0.2_val.json"
)
REPOSITORY = "lmms-lab-encoder/textvqa"
NORMALISERS: dict[str, Callable[[str], str]] = {
    "official": evalai_answer,
    "lmms-eval": evalai_answer,
    "vlmevalkit": vlmevalkit_vqa_answer,
}


@dataclass(frozen=True)
class TextVQAQuestion(Question):
    """A question.

    Attributes:
        answers: the ten annotators'.
        image_id: the picture's name in TextVQA's files.
        ocr_tokens: the words that were read in the picture; None for ``textvqa``.
    """

    answers: tuple[str, ...] = ()
    image_id: str = ""
    ocr_tokens: tuple[str, ...] | None = None


def load(folder: DataFolder, ocr: bool = False) -> list[TextVQAQuestion]:
    """Ids are TextVQA's question ids."""
    return _from_files(folder, ocr) if folder.find(ANNOTATIONS) is not None else _from_parquet(folder, ocr)


def _from_files(folder: DataFolder, ocr: bool) -> list[TextVQAQuestion]:
    path = folder.need(ANNOTATIONS)
    (records,) = values(folder.json(path), str(path), "data", kind=list)
    tokens = _tokens(folder) if ocr else None
    images, questions = folder.images("train_images"), []
    for number, record in enumerate(records, 1):
        where = f"{path}, record {number}"
        (image,) = values(record, where, "image_id", kind=str)
        if tokens is not None and image not in tokens:
            raise ValueError(f"{where}: the picture {image!r} is not in {OCR.path}. Are the two files of one version?")
        read = None if tokens is None else tokens[image]
        questions.append(_question(record, read, picture_file(images, f"{image}.jpg", where), where))
    return questions


def _tokens(folder: DataFolder) -> dict[str, tuple[str, ...]]:
    path = folder.need(OCR)
    (records,) = values(folder.json(path), str(path), "data", kind=list)
    found: dict[str, tuple[str, ...]] = {}
    for number, record in enumerate(records, 1):
        where = f"{path}, record {number}"
        (image,) = values(record, where, "image_id", kind=str)
        tokens = texts(record, where, "ocr_tokens")
        if found.setdefault(image, tokens) != tokens:
            raise ValueError(f"{where}: the picture {image!r} stands there twice, with other words.")
    return found


def _from_parquet(folder: DataFolder, ocr: bool) -> list[TextVQAQuestion]:
    rows = folder.parquet(REPOSITORY, None, "validation")
    pictures: dict[str, CellPicture] = {}
    questions = []
    for number, row in enumerate(rows.remove_columns("image")):
        where = f"{REPOSITORY}, row {number}"
        (image,), tokens = values(row, where, "image_id", kind=str), texts(row, where, "ocr_tokens")
        picture = pictures.setdefault(image, CellPicture(rows, number, f"{REPOSITORY}/{image}", root=folder.path))
        questions.append(_question(row, tokens if ocr else None, picture, where))
    return questions


def _question(record: Any, tokens: tuple[str, ...] | None, picture: Picture, where: str) -> TextVQAQuestion:
    (identity,) = values(record, where, "question_id", kind=str | int)
    text, image = values(record, where, "question", "image_id", kind=str)
    (answers,) = values(record, where, "answers")
    ten = ten_answers(answers, f"{where}, question {identity}")
    most = max(ten, key=ten.count)
    return TextVQAQuestion(str(identity), text, picture, most, answers=ten, image_id=image, ocr_tokens=tokens)


def prompt(question: TextVQAQuestion, protocol: ProtocolName) -> str:
    """Raises ValueError: VLMEvalKit has no OCR words."""
    _check_protocol(question.ocr_tokens is not None, protocol)
    text = question.text.capitalize() if protocol == "lmms-eval" else question.text
    read = "" if question.ocr_tokens is None else f"\n{OCR_MARK} {', '.join(question.ocr_tokens)}"
    return f"{text}{read}{SHORT_ANSWER}"


def _check_protocol(ocr: bool, protocol: ProtocolName) -> None:
    if ocr and protocol == "vlmevalkit":
        raise ValueError("textvqa-ocr: VLMEvalKit asks without OCR words: score textvqa, or choose another protocol.")


def score(
    questions: Sequence[TextVQAQuestion], answers: Mapping[str, str], protocol: ProtocolName = "official", ocr: bool = False
) -> Findings:
    """VQA accuracy of normalised answers.

    Raises:
        ValueError: VLMEvalKit has no OCR words.
    """
    _check_protocol(ocr, protocol)
    normalise = Remembered(NORMALISERS[protocol])
    points = [
        leave_one_out(normalise(answers[question.id]), [normalise(annotator) for annotator in question.answers])
        for question in questions
    ]
    return Findings(
        score=accuracy(points)["accuracy"],
        unit="VQA accuracy %",
        standard_error=100 * error_of_mean(points),
        error_method="of the mean over questions",
        unparsable=sum(not normalise(answers[question.id]) for question in questions),
    )


def _question_keys(questions: Sequence[TextVQAQuestion]) -> list[Key]:
    """LLaVA names a question by its picture, of which there may be several."""
    return [(question.image_id, question.text.split("\n")[0].lower()) for question in questions]


def _answer_key(answer: ForeignAnswer) -> Key:
    lines = answer.prompt.split("\n")
    text = lines[1] if lines[0].startswith(OCR_MARK) and len(lines) > 1 else lines[0]
    return answer.id, text.lower()


def _wrong_prompt(name: str, prompt: str, ocr: bool) -> str:
    """With OCR words the prompt is one of ``textvqa-ocr``, without them one of ``textvqa``."""
    if (OCR_MARK in prompt) == ocr:
        return ""
    how, other = ("without", name.removesuffix("-ocr")) if ocr else ("with", f"{name}-ocr")
    return f"asked {how} OCR words, which is not {name}: score it as {other}."


def _foreign_files(ocr: bool) -> ForeignFiles:
    return ForeignFiles(Pairing(_question_keys, _answer_key), wrong_prompt=partial(_wrong_prompt, ocr=ocr))


BENCHMARK = Benchmark(
    "textvqa", "TextVQA: words in pictures, ten annotators; asked without OCR words.", load, prompt, score, 128,
    foreign_files=_foreign_files(ocr=False), counts=(5000,),
)  # fmt: skip
WITH_OCR = Benchmark(
    "textvqa-ocr", "TextVQA, asked with the words that an OCR program read, as in LLaVA-1.5 and EvoMoE.",
    partial(load, ocr=True), prompt, partial(score, ocr=True), 128, foreign_files=_foreign_files(ocr=True), counts=(5000,),
    folders=("textvqa",), column="TextVQA",
)  # fmt: skip
