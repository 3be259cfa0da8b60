"""Answers that another program wrote, matched to a benchmark's questions.

Formats: LLaVA's answer file (JSON lines of question_id, prompt, text), EvalAI's JSON (question_id, answer), GQA's JSON
(questionId, prediction), MME's folder of text files, MMBench's Excel or tab-separated table (index, prediction), and our own
JSON lines (id, answer).
"""

import zipfile
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evomoe.evaluation.benchmark import Benchmark, Question
from evomoe.evaluation.checks import check_answers
from evomoe.evaluation.fields import json_lines, table_rows
from evomoe.evaluation.foreign_answers import ForeignAnswer, Key, Pairing, text_of
from evomoe.support.errors import foreign
from evomoe.support.parse_json import check_size, parse_json
from evomoe.support.text import counted

_IDS = ("id", "question_id", "questionId", "index")
_NOT_READ = (".csv", ".parquet", ".arrow", ".xls", ".ods", ".yaml", ".yml", ".pkl", ".zip", ".gz")
"""Files that other programs might write, and whose text would only seem to be broken JSON."""
_UNPACKED, _MOST_CELLS = 100_000_000, 20_000_000
"""What an Excel file may unpack to, in bytes, and have: a file of a few MB can hold far more than memory does."""
_TEXTS = ("text", "prediction", "answer")  # "answer" last: beside another one it is the right answer


def read(benchmark: Benchmark, questions: Sequence[Question], path: Path, allow_missing: bool = False) -> dict[str, str]:
    """The answers in a file by question id, in the order of the questions.

    Args:
        benchmark: what was asked; a small one is read as the one it imitates.
        questions: the benchmark's.
        path: a file, or a folder if the benchmark's answers are one.
        allow_missing: whether a question may go without an answer, which then counts as wrong.

    Raises:
        ValueError: the file is in none of the formats or broken (with the line), an answer is to no question, a prompt in the file
            asks something else, a question has two answers or none, or some of the questions that are scored together have none.
    """
    found = list(_answers(benchmark, path))
    if not found:
        raise ValueError(f"{path}: there are no answers in it.")
    pairing = _pairing(benchmark, questions, found)
    paired = _by_id(path, found) if pairing is None else _paired(pairing, questions, found)
    _check_prompts(benchmark, questions, paired)
    answers = {identity: answer.text for identity, answer in paired.items()}
    if allow_missing:
        answers |= {question.id: benchmark.unanswered(question) for question in questions if question.id not in answers}
    else:
        _check_units(benchmark, questions, answers)
    return check_answers(benchmark.name, questions, answers)


def _pairing(benchmark: Benchmark, questions: Sequence[Question], found: Sequence[ForeignAnswer]) -> Pairing | None:
    """How these answers find their questions; None if by the questions' own ids."""
    known = {question.id for question in questions}
    if any(answer.own or answer.id in known for answer in found):
        return None
    pairing = benchmark.foreign_files.pairing
    if pairing is not None and pairing.needs_prompts and not any(answer.prompt for answer in found):
        return None
    return pairing


def _by_id(path: Path, found: Sequence[ForeignAnswer]) -> dict[str, ForeignAnswer]:
    twice = [identity for identity, count in Counter(answer.id for answer in found).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: {counted(len(twice), 'question')} answered twice, first {twice[0]!r}.")
    return {answer.id: answer for answer in found}


def _paired(pairing: Pairing, questions: Sequence[Question], found: Sequence[ForeignAnswer]) -> dict[str, ForeignAnswer]:
    """Pairs questions and answers of equal keys, in the order of both where keys repeat."""
    waiting: dict[Key, deque[str]] = defaultdict(deque)
    for key, question in zip(pairing.of_questions(questions), questions, strict=True):
        waiting[key].append(question.id)
    keys = [pairing.of_answer(answer) for answer in found]
    unknown = [(answer, key) for answer, key in zip(found, keys, strict=True) if key not in waiting]
    if unknown:
        answer, key = unknown[0]
        raise ValueError(
            f"{answer.where}: no question of these annotations is {_shown(key)}, "
            f"the first of {counted(len(unknown), 'such answer')} in {len(found):,}{pairing.hint}."
        )
    paired: dict[str, ForeignAnswer] = {}
    for answer, key in zip(found, keys, strict=True):
        if not waiting[key]:
            raise ValueError(f"{answer.where}: one answer too many to {_shown(key)}; is the file written twice?")
        paired[waiting[key].popleft()] = answer
    return paired


def _shown(key: Key) -> str:
    return repr(", ".join(filter(None, key)))


def _check_prompts(benchmark: Benchmark, questions: Sequence[Question], answers: Mapping[str, ForeignAnswer]) -> None:
    """What a file says was asked must be the question: its ids may be those of another version, split or benchmark too."""
    foreign = benchmark.foreign_files
    for question in questions:
        answer = answers.get(question.id)
        if answer is None or not answer.prompt:
            continue
        if reason := foreign.wrong_prompt(benchmark.name, answer.prompt):
            raise ValueError(f"{answer.where}: {reason}")
        if _plain(question.text, foreign.often_left_out) not in _plain(answer.prompt, foreign.often_left_out):
            hint = f" ({foreign.versions})" if foreign.versions else ""
            raise ValueError(
                f"{answer.where}: asked {' '.join(answer.prompt.split())!r:.200}, but question {question.id} is "
                f"{question.text!r:.200}. Are these the annotations of the version and the split that were asked{hint}?"
            )


def _plain(text: str, often_left_out: str) -> str:
    """Without what may differ between a question and the prompt that asks it: spaces, capitals, words that are often left out."""
    return " ".join(text.replace(often_left_out, "").lower().split())


def _check_units(benchmark: Benchmark, questions: Sequence[Question], answers: Mapping[str, str]) -> None:
    """Questions that are scored together are answered together."""
    units: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        units[question.unit].append(question)
    for together in units.values():
        missing = [question for question in together if question.id not in answers]
        if 0 < len(missing) < len(together):
            raise ValueError(
                f"{benchmark.name}: {benchmark.part_of_unit(missing[0])} has no answer (question {missing[0].id}); "
                f"the {len(together)} are scored together. Add it, or count it as wrong with `allow_missing`."
            )


def _answers(benchmark: Benchmark, path: Path) -> Iterator[ForeignAnswer]:
    read_folder = benchmark.foreign_files.read_folder
    if path.is_dir():
        if read_folder is None:
            raise ValueError(f"{path}: a folder; {benchmark.name}'s answers are one file: name it.")
        return read_folder(path)
    if not path.exists():
        raise ValueError(f"{path}: there is no such file.")
    if path.suffix in _NOT_READ:
        raise ValueError(
            f"{path}: answers are read from .jsonl, .json, .tsv and .xlsx, not from {path.suffix}; save them as one of these."
        )
    if path.suffix == ".xlsx":
        return _records(path, _excel(path), "record")
    if path.suffix == ".json":
        check_size(path)
    text = text_of(path)
    if path.suffix == ".tsv":
        return _records(path, table_rows(text, path), "record")
    if text.lstrip().startswith("["):
        return _records(path, parse_json(text, str(path)), "record")
    return _records(path, json_lines(text, path), "line")


def _records(path: Path, records: Iterable[Any], unit: str) -> Iterator[ForeignAnswer]:
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
                f"{where}: not an answer; wanted are the fields question_id and text (LLaVA), or question_id and answer (EvalAI). "
                "Or they are questionId and prediction (GQA), index and prediction (MMBench), or id and answer."
            )
        if not isinstance(record[identity], str | int | float):
            raise ValueError(f"{where}: the id must be text or a number, not {record[identity]!r:.80}.")
        if isinstance(record[text], list | dict):
            raise ValueError(f"{where}: the answer must be text, not {record[text]!r:.80}.")
        said = record[text] if record[text] == record[text] else None  # pandas writes NaN where there is nothing
        if said is None and path.suffix != ".xlsx":  # whose empty cells are empty answers
            raise ValueError(f'{where}: the answer is null. Put the text there, or "" if the model said nothing.')
        given = "" if said is None else str(said)
        prompt = record.get("prompt")
        asked = prompt if isinstance(prompt, str) else ""
        yield ForeignAnswer(_identity(record[identity]), given, asked, where, identity == "id")


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
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > _UNPACKED:
            raise ValueError(
                f"it unpacks to {unpacked / 1e6:,.0f} MB, and {_UNPACKED / 1e6:,.0f} MB are the most; save the table as .tsv"
            )
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except Exception as error:  # openpyxl and zipfile raise many kinds, and all mean the same here
        raise ValueError(f"{path}: the Excel file cannot be read: {foreign(error)}") from error
    return [record if any(cell is not None for cell in record.values()) else None for record in _excel_records(path, book)]


def _excel_records(path: Path, book: Any) -> Iterator[dict[Any, Any]]:
    names: Sequence[Any] | None = None
    cells = 0
    try:
        for row in book.worksheets[0].iter_rows(values_only=True):
            cells += len(row)
            if cells > _MOST_CELLS:
                raise ValueError(f"it has more than {_MOST_CELLS:,} cells")
            if names is None:
                names = row
            else:
                yield dict.fromkeys(names) | dict(zip(names, row, strict=False))  # a row may end early
    except Exception as error:
        raise ValueError(f"{path}: the Excel file cannot be read: {foreign(error)}") from error
