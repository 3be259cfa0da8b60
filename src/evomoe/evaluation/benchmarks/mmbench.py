"""MMBench: questions with two to four choices, asked again with the choices rotated; all rotations must be right.

Data, below ``DIR/mmbench``: ``mmbench_dev_20230712.tsv`` (or another MMBench table of VLMEvalKit's, or the Chinese one of
LLaVA), with the pictures as base64; or the parquet of lmms-lab-encoder/MMBench, config en, split dev. The row of index
k·1,000,000 + i has question i with rotation k.

Rule: MMBench's CircularEval, as VLMEvalKit computes it without a judge (its ``mcq_circular_eval``): a single letter among the
last words of the answer, or else the only choice whose text occurs in it, or else wrong; nothing is guessed and no language
model asked. The score is over groups of rotations; the vanilla accuracies, over single rows, are other numbers. lmms-eval's
offline task reads other letters, and asks in other words. An answer that gives no letter is unparsable.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomoe.data.prompts import LETTER_ANSWER
from evomoe.evaluation.benchmark import Benchmark, Findings, ProtocolName, Question
from evomoe.evaluation.benchmarks import letters
from evomoe.evaluation.checks import check_labels
from evomoe.evaluation.data_folder import DataFile, DataFolder
from evomoe.evaluation.fields import table_rows, values
from evomoe.evaluation.pictures import CellPicture, EncodedPicture, Picture
from evomoe.evaluation.statistics import accuracy, accuracy_by_type, error_of_mean

_LLAVA = "https://download.openmmlab.com/mmclassification/datasets/mmbench"
_KIT = "https://opencompass.openxlab.space/utils/benchmarks/MMBench"
TABLES = (
    DataFile("mmbench_dev_20230712.tsv", f"{_LLAVA}/mmbench_dev_20230712.tsv"),
    DataFile("MMBench_DEV_EN.tsv", f"{_KIT}/MMBench_DEV_EN.tsv", md5="b6caf1133a01c6bb705cf753bb527ed8"),
    DataFile("MMBench_TEST_EN.tsv", f"{_KIT}/MMBench_TEST_EN.tsv", md5="6939fadb0ce626fefc0bdc9c64efc528"),
    DataFile("MMBench_DEV_EN_V11.tsv", f"{_KIT}/MMBench_DEV_EN_V11.tsv", md5="30c05be8f2f347a50be25aa067248184"),
    DataFile("MMBench_TEST_EN_V11.tsv", f"{_KIT}/MMBench_TEST_EN_V11.tsv", md5="8d1a704e791df6f5d9fb3ef782b65365"),
    DataFile("mmbench_dev_cn_20231003.tsv", f"{_LLAVA}/mmbench_dev_cn_20231003.tsv"),
    DataFile("MMBench_DEV_CN.tsv", f"{_KIT}/MMBench_DEV_CN.tsv", md5="08b8fc3324a5ed74155350f57be69fbd"),
)
REPOSITORY = "lmms-lab-encoder/MMBench"
GROUP = 1_000_000
CIRCULAR, VANILLA, VANILLA_ALL = "circular", "vanilla, unrotated rows", "vanilla, all rows"
# The cells that LLaVA and VLMEvalKit take for empty, through pandas.
EMPTY = {
    "",
    "nan",
    "none",
    "null",
    "n/a",
    "na",
    "#n/a",
    "<na>",
    "-nan",
    "#na",
    "#n/a n/a",
    "1.#ind",
    "-1.#ind",
    "1.#qnan",
    "-1.#qnan",
}


@dataclass(frozen=True)
class MMBenchQuestion(Question):
    """A rotation; its unit is the group of rotations, its type the category.

    Attributes:
        choices: their texts, A first.
        hint: what stands before the question; may be empty.
        l2_category: the coarser category.
        split: such as "dev".
    """

    choices: tuple[str, ...] = ()
    hint: str = ""
    l2_category: str = ""
    split: str = ""

    @property
    def rotation(self) -> int:
        return int(self.id) // GROUP


def load(folder: DataFolder) -> list[MMBenchQuestion]:
    """Ids are the table's index.

    Raises:
        ValueError: a group lacks one of its rotations.
    """
    path = folder.find(*TABLES)
    questions = _from_parquet(folder) if path is None else _from_table(path, folder.text(path))
    if not folder.published:
        _check_rotations(str(path or REPOSITORY), questions)
    return questions


def _from_table(path: Path, text: str) -> list[MMBenchQuestion]:
    rows = table_rows(text, path)
    where = [f"{path}, record {number}" for number in range(1, len(rows) + 1)]
    encoded = {row.get("index"): row.get("image", "") for row in rows}
    pictures: dict[int, EncodedPicture] = {}
    questions = []
    for row, place in zip(rows, where, strict=True):
        index, image = values(row, place, "index", "image")
        group = _index(index, place) % GROUP
        if group not in pictures:
            image = encoded.get(image, image)  # VLMEvalKit's tables name the row that holds the same picture
            pictures[group] = EncodedPicture(image, f"{path.stem}/{group}")
        questions.append(_question(row, pictures[group], place))
    return questions


def _from_parquet(folder: DataFolder) -> list[MMBenchQuestion]:
    rows = folder.parquet(REPOSITORY, "en", "dev")
    pictures: dict[int, CellPicture] = {}
    questions = []
    table: Any = rows.remove_columns("image")  # a Dataset, whose wrapped methods tell no type
    for number, row in enumerate(table):
        place = f"{REPOSITORY}, row {number}"
        (index,) = values(row, place, "index")
        group = _index(index, place) % GROUP
        picture = pictures.setdefault(group, CellPicture(rows, number, f"{REPOSITORY}/{group}", root=folder.path))
        questions.append(_question(row, picture, place))
    return questions


def _index(index: Any, where: str) -> int:
    try:
        return int(index)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: the index {index!r} is not a number.") from None


def _cell(row: Mapping[str, Any], *names: str) -> str:
    """The first of these cells that is there; one that pandas takes for empty is ""."""
    text = next((str(row[name]) for name in names if row.get(name) is not None), "")
    return "" if text.lower() in EMPTY else text


def _question(row: Mapping[str, Any], picture: Picture, where: str) -> MMBenchQuestion:
    (index,), (text,) = values(row, where, "index"), values(row, where, "question", kind=str)
    choices: list[str] = []
    for letter in "ABCD":
        if not (choice := _cell(row, letter)):
            break
        choices.append(choice)
    answer = _cell(row, "answer")
    if answer and answer not in tuple(letters.LETTERS[: len(choices)]):
        raise ValueError(f"{where}: the answer {answer!r} is not among the {len(choices)} choices.")
    return MMBenchQuestion(
        id=str(int(index)),
        text=text,
        picture=picture,
        answer=answer,
        type=_cell(row, "category"),
        unit=str(int(index) % GROUP),
        choices=tuple(choices),
        hint=_cell(row, "hint"),
        l2_category=_cell(row, "l2-category", "L2-category"),
        split=_cell(row, "split"),
    )


def _check_rotations(where: str, questions: Iterable[MMBenchQuestion]) -> None:
    for unit, group in _groups(questions).items():
        rotations = {question.rotation for question in group}
        missing = [k for k in range(max(_turns(group), *rotations) + 1) if k not in rotations]
        if missing:
            raise ValueError(
                f"{where}: group {unit} lacks rotation {missing[0]}, the row of index {missing[0] * GROUP + int(unit):,}; "
                "a group counts if all of its rotations are right. Get the whole table."
            )


def _turns(group: Iterable[MMBenchQuestion]) -> int:
    """The number of the last rotation, one less than the choices.

    In the published table, groups of four choices whose last one ("Both A, B, and C") stays the last are rotated among three.
    """
    first, *others = sorted(group, key=lambda question: question.rotation)
    fourth_stays = not any(question.choices[3:] and question.choices[3] in first.choices[:3] for question in others)
    return min(len(first.choices), 3 if fourth_stays else 4) - 1


def _groups(questions: Iterable[MMBenchQuestion]) -> dict[str, list[MMBenchQuestion]]:
    groups: dict[str, list[MMBenchQuestion]] = defaultdict(list)
    for question in questions:
        groups[question.unit].append(question)
    return groups


def _part_of_group(question: MMBenchQuestion) -> str:
    return f"rotation {question.rotation} of group {question.unit}"


def prompt(question: MMBenchQuestion, protocol: ProtocolName) -> str:
    hint, text, choices = question.hint, question.text, letters.lettered(question.choices)
    if protocol == "vlmevalkit":
        return letters.vlmevalkit_prompt(text, hint, question.choices)
    if protocol == "lmms-eval":
        start = f"{hint} " if hint else ""
        return f"{start}{text} There are several options:\n{choices}\n{LETTER_ANSWER}"
    start = f"{hint}\n" if hint else ""
    return f"{start}{text}\n{choices}{LETTER_ANSWER}"


def score(questions: Sequence[MMBenchQuestion], answers: Mapping[str, str], protocol: ProtocolName = "official") -> Findings:
    """Circular accuracy over groups; the vanilla ones, and circular by category, in the tables.

    Raises:
        ValueError: the right answers are not public.
    """
    check_labels(BENCHMARK.name, questions, "MMBench's server")
    read = letters.lmms_letter if protocol == "lmms-eval" else letters.vlmevalkit_letter
    readings = {
        question.id: read(answers[question.id], dict(zip(letters.LETTERS, question.choices, strict=False)))
        for question in questions
    }
    right = {question.id: float(readings[question.id] == question.answer) for question in questions}
    groups = list(_groups(questions).values())
    hits = [min(right[question.id] for question in group) for group in groups]
    first = [min(group, key=lambda question: question.rotation) for group in groups]
    return Findings(
        score=accuracy(hits)["accuracy"],
        unit="circular accuracy %",
        standard_error=100 * error_of_mean(hits),
        error_method="of the mean over groups of rotations",
        unparsable=sum(not reading for reading in readings.values()),
        tables={
            "overall": {
                CIRCULAR: accuracy(hits, "groups"),
                VANILLA: accuracy([right[question.id] for question in first]),
                VANILLA_ALL: accuracy(list(right.values())),
            },
            "category": accuracy_by_type([question.type for question in first], hits, "groups"),
            "l2-category": accuracy_by_type([question.l2_category for question in first], hits, "groups"),
        },
    )


def submit(questions: Sequence[MMBenchQuestion], answers: Mapping[str, str], folder: Path) -> list[Path]:
    """``mmbench.xlsx`` for MMBench's server, with LLaVA's columns.

    Raises:
        ValueError: the package openpyxl is not installed.
    """
    try:
        import openpyxl
    except ImportError:
        raise ValueError("mmbench: the submission is an Excel file, which needs openpyxl: pip install openpyxl") from None
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet()
    sheet.append(["index", "question", "A", "B", "C", "D", "prediction", "answer", "split"])
    for question in questions:
        choices = [*question.choices, None, None, None, None][:4]
        cells = [question.text, *choices, answers[question.id], question.answer or None, question.split or None]
        sheet.append([int(question.id), *(_plain(sheet, cell) for cell in cells)])
    folder.mkdir(parents=True, exist_ok=True)
    book.save(folder / "mmbench.xlsx")
    return [folder / "mmbench.xlsx"]


def _plain(sheet: Any, text: str | None) -> Any:
    """A cell of text: never a formula, and without the control characters that Excel has no way to hold."""
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    if text is None:
        return None
    cell = WriteOnlyCell(sheet, ILLEGAL_CHARACTERS_RE.sub("", text))
    cell.data_type = "s"
    return cell


BENCHMARK = Benchmark(
    "mmbench", "MMBench: questions with choices, right in every rotation.", load, prompt, score, 1024, submit=submit,
    part_of_unit=_part_of_group, counts=(4377, 4329, 6666), column="MMBench",
)  # fmt: skip
