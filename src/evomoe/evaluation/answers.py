"""Answers on disk: appended as they come, resumed by question id, and never those of another model or prompt.

The lines are LLaVA's: ``question_id``, ``prompt``, ``text``, ``answer_id``, ``model_id``, ``metadata``.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evomoe.evaluation.benchmark import Question
from evomoe.support.files import naming, write_text
from evomoe.support.names import own_files
from evomoe.support.parse_json import shallow
from evomoe.support.text import counted

_KEY_LENGTH = 12


def key_of(settings: Mapping[str, Any]) -> str:
    """A short name for all that the answers depend on."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:_KEY_LENGTH]


def digest(parts: Iterable[str]) -> str:
    """One hash of many texts."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.encode("utf-8", "surrogatepass") + b"\0")
    return total.hexdigest()


def fingerprint(checkpoint: str | Path) -> dict[str, str]:
    """Hashes of the files of a model's folder that its answers depend on: weights, configuration, processor.

    The whole files count, not their dates, so that a copied folder is the same model and an overwritten one is another.
    A model of the hub is named by its commit.
    """
    if not Path(checkpoint).is_dir():
        from transformers.utils.hub import cached_file, extract_commit_hash

        file = cached_file(str(checkpoint), "config.json")
        return {"hub": str(checkpoint), "commit": str(extract_commit_hash(file, None))}
    files = [path for path in own_files(Path(checkpoint), "*") if path.suffix in _MODEL_FILES]
    return {path.name: _hash(path) for path in files}


_MODEL_FILES = {".safetensors", ".bin", ".gguf", ".json", ".jinja", ".model", ".txt", ".py"}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


class AnswerFile:
    """The answers of one model to one benchmark.

    They are appended to ``answers-KEY.partial-RANK.jsonl``, one file for each process, and when all are there, put in the
    order of the questions into ``answers-KEY.jsonl``.

    Args:
        folder: the benchmark's folder; is made.
        settings: all that the answers depend on.
        rank: number of this process.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], rank: int = 0) -> None:
        self.key = key_of(settings)
        self.path = folder / f"answers-{self.key}.jsonl"
        self._own = folder / f"answers-{self.key}.partial-{rank}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        _drop_cut_line(self._own)

    @property
    def finished(self) -> bool:
        return self.path.is_file()

    def read(self) -> dict[str, str]:
        """The answers so far, by question id. A line that was cut short by an interruption does not count."""
        files = [self.path] if self.finished else self._partial()
        return {row["question_id"]: row["text"] for file in files for row in _whole_lines(file)}

    def append(self, answers: Sequence[tuple[Question, str, str]], model: str) -> None:
        """Writes (question, prompt, answer) to the disk.

        Raises:
            OSError: the disk is full; the answers before these are kept.
        """
        lines = [json.dumps(_line(question, prompt, text, self.key, model)) + "\n" for question, prompt, text in answers]
        advice = "The answers before are kept: make room, and the same command goes on from there."
        with naming(self._own, advice), self._own.open("ab") as file:
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())

    def finish(self, questions: Sequence[Question], prompts: Sequence[str], model: str) -> dict[str, str]:
        """Makes the one file of all answers, in the order of the questions, and returns them."""
        answers = self.read()
        self.check(questions, answers)
        rows = [
            json.dumps(_line(question, prompt, answers[question.id], self.key, model))
            for question, prompt in zip(questions, prompts, strict=True)
        ]
        write_text(self.path, "\n".join(rows) + "\n")
        for partial in self._partial():
            partial.unlink()
        return {question.id: answers[question.id] for question in questions}

    def check(self, questions: Sequence[Question], answers: Mapping[str, str]) -> None:
        """Raises ValueError if a question has no answer, as in a file that was damaged."""
        missing = [question.id for question in questions if question.id not in answers]
        if missing:
            raise ValueError(
                f"{self.path}: {counted(len(missing), 'answer')} missing, first to {missing[0]!r}; the files were damaged. "
                "Remove them, and the questions are asked anew."
            )

    def _partial(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"answers-{self.key}.partial-*.jsonl"))


def _line(question: Question, prompt: str, text: str, key: str, model: str) -> dict[str, Any]:
    return {
        "question_id": question.id, "prompt": prompt, "text": text, "answer_id": key, "model_id": model, "metadata": {},
    }  # fmt: skip


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    rows = []
    for number, line in enumerate(whole.split(b"\n"), 1):
        if line:
            try:
                with shallow(path):
                    row = json.loads(line)
                rows.append({"question_id": row["question_id"], "text": row["text"]})
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number}: damaged ({error}). Remove the line, or the file to ask anew."
                ) from error
    return rows


def _drop_cut_line(path: Path) -> None:
    """Removes what an interruption left of a last line, so that the next one starts on its own."""
    if path.is_file():
        content = path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            os.truncate(path, end)
