"""Answers that another program wrote, matched to a benchmark's questions.

Formats: LLaVA's answer file (JSON lines of question_id, prompt, text), EvalAI's JSON (question_id, answer), GQA's JSON
(questionId, prediction), MME's folder of text files, MMBench's Excel or tab-separated table (index, prediction), and our own
JSON lines (id, answer).
"""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomoe.data.sources import parse_json
from evomoe.evaluation.base import Question, check_answers
from evomoe.evaluation.benchmarks import BENCHMARKS, mme
from evomoe.evaluation.benchmarks.mmbench import GROUP, table_rows
from evomoe.evaluation.sources import json_lines
from evomoe.words import counted

Key = tuple[str, ...]
_IDS = ("id", "question_id", "questionId", "index")
_TEXTS = ("text", "prediction", "answer")  # "answer" last: beside another one it is the right answer
# LLaVA's question file numbers POPE's splits one after the other.
_LLAVA_POPE = ("adversarial", "random", "popular")
_LLAVA_POPE_STEP = 10_000_000
_LLAVA_POPE_IDS = (
    "; LLaVA's ids for POPE are 1 and on (adversarial), 10,000,001 and on (random), 20,000,001 and on (popular), "
    "and ids such as 'adversarial/1' are understood too"
)
_OCR_MARK = "Reference OCR token:"


@dataclass(frozen=True)
class Answer:
    """One answer of a file.

    Attributes:
        id: what the file calls the question.
        text: the answer.
        prompt: what was asked; empty if the file does not say.
        where: file and record, for errors.
        own: whether the id is `Question.id`.
    """

    id: str
    text: str
    prompt: str
    where: str
    own: bool = False


def read(name: str, questions: Sequence[Question], path: Path, allow_missing: bool = False) -> dict[str, str]:
    """The answers in a file by question id, in the order of the questions.

    Args:
        name: the benchmark's; a small one is read as the one it imitates.
        questions: the benchmark's.
        path: a file, or MME's folder.
        allow_missing: whether a question may go without an answer, which then counts as wrong.

    Raises:
        ValueError: the file is in none of the formats or broken (with the line), an answer is to no question, a prompt in the file
            asks something else, a question has two answers or none, or an MMBench group or an MME picture lacks some of its answers.
    """
    kind = name.removeprefix("mini-")
    found = list(_answers(path))
    if not found:
        raise ValueError(f"{path}: there are no answers in it.")
    known = {question.id for question in questions}
    own = any(answer.own or answer.id in known for answer in found)
    if own or kind not in _KEYS or (kind != "pope" and not any(answer.prompt for answer in found)):
        paired = _by_id(path, found)
    else:
        of_questions, of_answer = _KEYS[kind]
        keys = of_questions(questions)
        paired = _paired(zip(keys, (question.id for question in questions), strict=True), found, of_answer)
    _check_prompts(name, questions, paired)
    answers = {identity: answer.text for identity, answer in paired.items()}
    if not allow_missing:
        _check_units(name, questions, answers)
    if allow_missing:
        answers |= {question.id: BENCHMARKS[name].unanswered(question) for question in questions if question.id not in answers}
    return check_answers(name, questions, answers)


def _by_id(path: Path, found: Sequence[Answer]) -> dict[str, Answer]:
    twice = [identity for identity, count in Counter(answer.id for answer in found).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: {counted(len(twice), 'question')} answered twice, first {twice[0]!r}.")
    return {answer.id: answer for answer in found}


def _paired(asked: Iterable[tuple[Key, str]], found: Sequence[Answer], of_answer: Callable[[Answer], Key]) -> dict[str, Answer]:
    """Pairs questions and answers of equal keys, in the order of both where keys repeat."""
    waiting: dict[Key, deque[str]] = defaultdict(deque)
    for key, identity in asked:
        waiting[key].append(identity)
    keys = [of_answer(answer) for answer in found]
    unknown = [(answer, key) for answer, key in zip(found, keys, strict=True) if key not in waiting]
    if unknown:
        answer, key = unknown[0]
        hint = _LLAVA_POPE_IDS if of_answer is _pope_line else ""
        raise ValueError(
            f"{answer.where}: no question of these annotations is {_shown(key)}, "
            f"the first of {counted(len(unknown), 'such answer')} in {len(found):,}{hint}."
        )
    paired: dict[str, Answer] = {}
    for answer, key in zip(found, keys, strict=True):
        if not waiting[key]:
            raise ValueError(f"{answer.where}: one answer too many to {_shown(key)}; is the file written twice?")
        paired[waiting[key].popleft()] = answer
    return paired


def _shown(key: Key) -> str:
    return repr(", ".join(filter(None, key)))


def _bare(text: str) -> str:
    """A question of MME without what is added to it, whatever its spaces."""
    return " ".join(text.split("\n")[0].replace(mme.YES_OR_NO, "").split())


def _pope_lines(questions: Sequence[Question]) -> list[Key]:
    """Split and line of each question: LLaVA pairs answers and labels by their lines."""
    lines: Counter[str] = Counter()
    keys: list[Key] = []
    for question in questions:
        lines[question.type] += 1
        keys.append((question.type, f"line {lines[question.type]}"))
    return keys


def _pope_line(answer: Answer) -> Key:
    """The same of an answer: LLaVA's ids count the lines of a split. Any other id is that of no question."""
    number = int(answer.id) // _LLAVA_POPE_STEP if answer.id.isdecimal() else -1
    if number not in range(len(_LLAVA_POPE)):
        return (answer.id,)
    return _LLAVA_POPE[number], f"line {int(answer.id) % _LLAVA_POPE_STEP}"


def _mme_key(answer: Answer) -> Key:
    subtask, _, image = answer.id.partition("/")
    return subtask, Path(image).stem, _bare(answer.prompt)


def _mme_question(question: Any) -> Key:
    return question.type, Path(question.image).stem, _bare(question.text)  # without the pictures their endings are not known


def _textvqa_key(answer: Answer) -> Key:
    lines = answer.prompt.split("\n")
    text = lines[1] if lines[0].startswith(_OCR_MARK) and len(lines) > 1 else lines[0]
    return answer.id, text.lower()


def _textvqa_question(question: Any) -> Key:
    return question.image_id, question.text.split("\n")[0].lower()


# Where a file's ids are not the questions': what both sides are paired by, of the questions and of an answer.
_KEYS: dict[str, tuple[Callable[[Sequence[Any]], list[Key]], Callable[[Answer], Key]]] = {
    "pope": (_pope_lines, _pope_line),
    "mme": (lambda questions: [*map(_mme_question, questions)], _mme_key),
    "textvqa": (lambda questions: [*map(_textvqa_question, questions)], _textvqa_key),
    "textvqa-ocr": (lambda questions: [*map(_textvqa_question, questions)], _textvqa_key),
}


def _check_prompts(name: str, questions: Sequence[Question], answers: Mapping[str, Answer]) -> None:
    """What a file says was asked must be the question: its ids may be those of another version, split or benchmark too."""
    for question in questions:
        answer = answers.get(question.id)
        if answer is None or not answer.prompt:
            continue
        if "textvqa" in name and (_OCR_MARK in answer.prompt) != name.endswith("-ocr"):
            how, other = ("without", name.removesuffix("-ocr")) if name.endswith("-ocr") else ("with", f"{name}-ocr")
            raise ValueError(f"{answer.where}: asked {how} OCR words, which is not {name}: score it as {other}.")
        if _plain(question.text) not in _plain(answer.prompt):
            hint = " (random has 2,910 or 3,000 questions)" if name == "pope" else ""
            raise ValueError(
                f"{answer.where}: asked {' '.join(answer.prompt.split())!r:.200}, but question {question.id} is "
                f"{question.text!r:.200}. Are these the annotations of the version and the split that were asked{hint}?"
            )


def _plain(text: str) -> str:
    """Without what may differ between a question and the prompt that asks it: spaces, capitals, MME's last sentence."""
    return " ".join(text.replace(mme.YES_OR_NO, "").lower().split())


def _check_units(name: str, questions: Sequence[Question], answers: Mapping[str, str]) -> None:
    """Questions that are scored together are answered together."""
    units: dict[str, list[str]] = defaultdict(list)
    for question in questions:
        units[question.unit].append(question.id)
    for unit, identities in units.items():
        missing = [identity for identity in identities if identity not in answers]
        if 0 < len(missing) < len(identities):
            what = f"rotation {int(missing[0]) // GROUP} of group" if missing[0].isdigit() else "one of the pair of"
            raise ValueError(
                f"{name}: {what} {unit} has no answer (question {missing[0]}); the {len(identities)} are scored together. "
                "Add it, or count it as wrong with --allow-missing."
            )


def _answers(path: Path) -> Iterator[Answer]:
    if path.is_dir():
        return _mme_folder(path)
    if not path.exists():
        raise ValueError(f"{path}: there is no such file.")
    if path.suffix == ".xlsx":
        return _records(path, _excel(path), "record")
    text = _text(path)
    if path.suffix == ".tsv":
        return _records(path, table_rows(text, path), "record")
    if text.lstrip().startswith("["):
        return _records(path, parse_json(text, str(path)), "record")
    return _records(path, json_lines(text, path), "line")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: the file is neither UTF-8 text nor an Excel file (.xlsx).") from None


def _records(path: Path, records: Iterable[Any], unit: str) -> Iterator[Answer]:
    for number, record in enumerate(records, 1):
        if record is None:  # an empty line
            continue
        where = f"{path}, {unit} {number}"
        identity = next((name for name in _IDS if isinstance(record, dict) and name in record), None)
        text = next((name for name in _TEXTS if isinstance(record, dict) and name in record and identity), None)
        if identity == "index":
            text = "prediction" if "prediction" in record else None  # beside it, "answer" is the right one
        if identity is None or text is None:
            raise ValueError(
                f"{where}: not an answer; wanted are the fields question_id and text (LLaVA), question_id and answer (EvalAI), "
                "questionId and prediction (GQA), index and prediction (MMBench), or id and answer."
            )
        if not isinstance(record[identity], str | int | float):
            raise ValueError(f"{where}: the id must be text or a number, not {record[identity]!r:.80}.")
        if isinstance(record[text], list | dict):
            raise ValueError(f"{where}: the answer must be text, not {record[text]!r:.80}.")
        given = "" if record[text] is None else str(record[text])
        prompt = record.get("prompt")
        asked = prompt if isinstance(prompt, str) else ""
        yield Answer(_identity(record[identity]), given, asked, where, identity == "id")


def _identity(value: Any) -> str:
    """Excel keeps whole numbers as numbers with a fraction."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _excel(path: Path) -> list[dict[str, Any] | None]:
    """The rows by the names in the first one; None for an empty row."""
    try:
        import openpyxl
    except ImportError:
        raise ValueError(f"{path}: reading an Excel file needs openpyxl: pip install openpyxl") from None
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except Exception as error:  # openpyxl and zipfile raise many kinds, and all mean the same here
        raise ValueError(f"{path}: the Excel file cannot be read: {error}") from error
    rows: Any = book.worksheets[0].iter_rows(values_only=True)
    names = next(rows, ())
    records = (dict.fromkeys(names) | dict(zip(names, row, strict=False)) for row in rows)  # a row may end early
    return [record if any(cell is not None for cell in record.values()) else None for record in records]


def _mme_folder(path: Path) -> Iterator[Answer]:
    """MME's files: two consecutive lines of picture, question, right answer, answer for each picture."""
    for file in sorted(path.glob("*.txt")):
        cells = [line.split("\t") for line in _text(file).rstrip("\n").split("\n")]
        for number, row in enumerate(cells, 1):
            if len(row) != 4:
                raise ValueError(f"{file}, line {number}: {len(row)} cells; MME's lines have 4: picture, question, gt, answer.")
            partner = cells[(number - 1) ^ 1] if (number - 1) ^ 1 < len(cells) else [""]
            if partner[0] != row[0]:
                raise ValueError(f"{file}, line {number}: {row[0]} stands alone; a picture's two lines follow each other.")
            yield Answer(f"{file.stem}/{row[0]}", row[3], row[1], f"{file}, line {number}")
