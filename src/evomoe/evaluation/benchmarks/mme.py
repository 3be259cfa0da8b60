"""MME: 2,374 yes-or-no questions, two to a picture, in ten subtasks of perception and four of cognition.

Data, below ``DIR/mme/MME_Benchmark_release_version``: a folder for each subtask with ``NAME.txt`` (two lines of question, tab,
answer) beside ``NAME.jpg`` or ``NAME.png``, or the two in ``questions_answers_YN/`` and ``images/``; or the parquet of
lmms-lab-encoder/MME. The release may also lie in ``DIR``, or be ``DIR/mme`` itself, and have a folder ``MME_Benchmark`` around
its subtasks.

Rule: MME's ``calculation.py``: an answer's first four characters hold yes, or else no; a subtask's score is the percentage of
right answers plus that of pictures with both right; perception and cognition are sums of subtasks. lmms-eval strips the
answer, drops its periods, and takes "y" and "n" too. VLMEvalKit looks for one of the two words anywhere. An answer that is
read as neither is unparsable, and wrong.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evomoe.data.prompts import SHORT_ANSWER
from evomoe.evaluation.benchmark import Benchmark, Findings, ProtocolName, Question, Row
from evomoe.evaluation.benchmarks.yes_no import lmms_mme_reading, mme_reading, vlmevalkit_reading
from evomoe.evaluation.data_folder import DataFile, DataFolder
from evomoe.evaluation.fields import values
from evomoe.evaluation.foreign_answers import ForeignAnswer, ForeignFiles, Key, Pairing, text_of
from evomoe.evaluation.pictures import CellPicture, Picture, picture_file
from evomoe.evaluation.statistics import error_of_mean, percent
from evomoe.support.files import write_text
from evomoe.support.names import own_files

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
SUBTASKS = (*PERCEPTION, *COGNITION)
RELEASE = DataFile(
    "MME_Benchmark_release_version",
    "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation (a folder, sent on request)",
)
REPOSITORY = "lmms-lab-encoder/MME"
YES_OR_NO = "Please answer yes or no."
READINGS = {"official": mme_reading, "lmms-eval": lmms_mme_reading, "vlmevalkit": vlmevalkit_reading}


@dataclass(frozen=True)
class MMEQuestion(Question):
    """A question of a pair; its unit is subtask and picture, such as "OCR/0001.jpg"; its type is the subtask.

    Attributes:
        image: the picture's name in MME's answer files.
    """

    image: str = ""


def load(folder: DataFolder) -> list[MMEQuestion]:
    """Ids are subtask, picture and number, such as "OCR/0001.jpg/1"."""
    release = _release(folder)
    if release is None:
        return _from_parquet(folder)
    return [question for subtask in SUBTASKS for question in _subtask(folder, release / subtask)]


def _release(folder: DataFolder) -> Path | None:
    """The folder with those of the subtasks."""
    places = [place / below for place in (folder.find(RELEASE), folder.path) if place for below in ("", "MME_Benchmark")]
    return next((place for place in places if any((place / subtask).is_dir() for subtask in SUBTASKS)), None)


def _subtask(folder: DataFolder, path: Path) -> list[MMEQuestion]:
    nested = (path / "questions_answers_YN").is_dir()
    texts, pictures = (path / "questions_answers_YN", path / "images") if nested else (path, path)
    assert folder.path is not None  # the release lies in it
    images = folder.images(str(pictures.relative_to(folder.path)))
    questions = []
    for file in own_files(texts, "*.txt"):
        lines = [line for line in folder.text(file).splitlines() if line.strip()]
        if len(lines) != 2:
            raise ValueError(f"{file}: {len(lines)} questions; MME has two to a picture.")
        names = [name for name in (f"{file.stem}.jpg", f"{file.stem}.png") if Path(images.resolve(name)).exists()]
        name = names[0] if names else f"{file.stem}.jpg"
        for number, line in enumerate(lines, 1):
            text, tab, answer = line.partition("\t")
            if not tab:
                raise ValueError(f"{file}, line {number}: no tab between question and answer.")
            picture = picture_file(images, name, str(file))
            questions.append(_question(path.name, name, number, text, picture, answer, f"{file}, line {number}"))
    return questions


def _from_parquet(folder: DataFolder) -> list[MMEQuestion]:
    rows = folder.parquet(REPOSITORY, None, "test")
    questions: list[MMEQuestion] = []
    first: dict[tuple[str, str], CellPicture] = {}  # a picture stands in both of its rows
    seen: Counter[tuple[str, str]] = Counter()
    for number, row in enumerate(rows.remove_columns("image")):
        where = f"{REPOSITORY}, row {number}"
        image, text, answer, subtask = values(row, where, "question_id", "question", "answer", "category", kind=str)
        name = Path(image).name  # "artwork/images/20551.jpg" or "OCR/0001.jpg", as in LLaVA's question file
        seen[subtask, name] += 1
        picture = first.setdefault((subtask, name), CellPicture(rows, number, f"{subtask}/{name}", root=folder.path))
        questions.append(_question(subtask, name, seen[subtask, name], text, picture, answer, where))
    return questions


def _question(subtask: str, image: str, number: int, text: str, picture: Picture, answer: str, where: str) -> MMEQuestion:
    answer = answer.strip().lower()
    if answer not in ("yes", "no"):
        raise ValueError(f"{where}: the answer {answer!r} is neither yes nor no.")
    unit = f"{subtask}/{image}"
    return MMEQuestion(f"{unit}/{number}", text, picture, answer, subtask, unit, image)


def prompt(question: MMEQuestion, protocol: ProtocolName) -> str:
    """VLMEvalKit asks the question as it is, which ends in "Please answer yes or no."; the others ask for one word instead."""
    if protocol == "vlmevalkit":
        return question.text
    if protocol == "lmms-eval":
        return question.text.strip().replace(f" {YES_OR_NO}", "") + SHORT_ANSWER
    return question.text.replace(YES_OR_NO, "").strip() + SHORT_ANSWER


def score(questions: Sequence[MMEQuestion], answers: Mapping[str, str], protocol: ProtocolName = "official") -> Findings:
    """Perception, of 2,000; cognition, of 800, and the subtasks, of 200 each, are in the tables.

    Where subtasks are missing, the two are of 200 for each that is there.

    Raises:
        ValueError: a picture has not two questions.
    """
    readings = {question.id: READINGS[protocol](answers[question.id]) for question in questions}
    right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for question in questions:
        right[question.type][question.unit].append(readings[question.id] == question.answer)
    for pictures in right.values():
        for unit, pair in pictures.items():
            if len(pair) != 2:
                raise ValueError(f"mme: {unit} has {len(pair)} of its 2 questions; MME scores pictures with both.")
    subtasks = {name: _row(list(right[name].values())) for name in SUBTASKS if name in right}
    domains = {name: _sum(group, subtasks) for name, group in (("perception", PERCEPTION), ("cognition", COGNITION))}
    return Findings(
        score=domains["perception"]["score"],
        unit=f"perception, points of {domains['perception']['of']:,}",
        standard_error=domains["perception"]["standard error"],
        error_method="of the subtasks' means over pictures",
        unparsable=sum(not reading for reading in readings.values()),
        tables={"domain": domains, "subtask": subtasks},
        missing=tuple(name for name in PERCEPTION if name not in subtasks),
    )


def _row(pairs: list[list[bool]]) -> Row:
    accuracy = percent(sum(sum(pair) for pair in pairs), 2 * len(pairs))
    both = percent(sum(all(pair) for pair in pairs), len(pairs))
    points = [50 * sum(pair) + (100 if all(pair) else 0) for pair in pairs]
    return {
        "score": accuracy + both,
        "accuracy": accuracy,
        "accuracy+": both,
        "standard error": error_of_mean(points),
        "questions": 2 * len(pairs),
    }


def _sum(names: Sequence[str], subtasks: Mapping[str, Row]) -> Row:
    rows = [subtasks[name] for name in names if name in subtasks]
    return {
        "score": sum(row["score"] for row in rows),
        "of": 200 * len(rows),
        "standard error": math.hypot(*(row["standard error"] for row in rows)),
        "questions": sum(row["questions"] for row in rows),
    }


def submit(questions: Sequence[MMEQuestion], answers: Mapping[str, str], folder: Path) -> list[Path]:
    """``SUBTASK.txt`` files for ``calculation.py``: picture, question, right answer, answer; an answer is put on one line."""
    lines: dict[str, list[str]] = defaultdict(list)
    for question in sorted(questions, key=lambda question: question.unit):  # stable: a picture's two stay in their order
        answer = " ".join(answers[question.id].split())
        lines[question.type].append(f"{question.image}\t{question.text}\t{question.answer.capitalize()}\t{answer}\n")
    folder.mkdir(parents=True, exist_ok=True)
    for subtask, of_subtask in lines.items():
        write_text(folder / f"{subtask}.txt", "".join(of_subtask))
    return [folder / f"{subtask}.txt" for subtask in lines]


def read_folder(path: Path) -> Iterator[ForeignAnswer]:
    """The answers in the files that ``calculation.py`` reads: two consecutive lines for each picture, see ``submit``.

    Raises:
        ValueError: a line has not four cells, or a picture has one line only.
    """
    for file in own_files(path, "*.txt"):
        cells = [line.split("\t") for line in text_of(file).rstrip("\n").split("\n")]
        for number, row in enumerate(cells, 1):
            if len(row) != 4:
                raise ValueError(f"{file}, line {number}: {len(row)} cells; MME's lines have 4: picture, question, gt, answer.")
            partner = cells[(number - 1) ^ 1] if (number - 1) ^ 1 < len(cells) else [""]
            if partner[0] != row[0]:
                raise ValueError(f"{file}, line {number}: {row[0]} stands alone; a picture's two lines follow each other.")
            yield ForeignAnswer(f"{file.stem}/{row[0]}", row[3], row[1], f"{file}, line {number}")


def _question_keys(questions: Sequence[MMEQuestion]) -> list[Key]:
    """Subtask, picture and question: without the pictures, the endings of their names are not known."""
    return [(question.type, Path(question.image).stem, _bare(question.text)) for question in questions]


def _answer_key(answer: ForeignAnswer) -> Key:
    subtask, _, image = answer.id.partition("/")
    return subtask, Path(image).stem, _bare(answer.prompt)


def _bare(text: str) -> str:
    """A question without what is added to it, whatever its spaces."""
    return " ".join(text.split("\n")[0].replace(YES_OR_NO, "").split())


def _part_of_pair(question: MMEQuestion) -> str:
    return f"one of the pair of {question.unit}"


BENCHMARK = Benchmark(
    "mme", "MME: pairs of yes-or-no questions in 14 subtasks; perception of 2,000 points.", load, prompt, score, 128, submit=submit,
    part_of_unit=_part_of_pair,
    foreign_files=ForeignFiles(Pairing(_question_keys, _answer_key), read_folder, often_left_out=YES_OR_NO),
    types=SUBTASKS, counts=(2374,), folders=("mme", RELEASE.path), column="MME", divisor=20,
)  # fmt: skip
