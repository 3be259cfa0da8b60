"""Answers that another program wrote, and what a benchmark must declare so that each finds its question.

Most programs keep a benchmark's own ids. Where they do not, a benchmark's file declares a `Pairing`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomoe.support.names import refuse_special

Key = tuple[str, ...]


@dataclass(frozen=True)
class ForeignAnswer:
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


@dataclass(frozen=True)
class Pairing:
    """How a question and its answer find each other where other programs have ids of their own: both have the same key.

    Attributes:
        of_questions: the key of each question.
        of_answer: the key of an answer.
        needs_prompts: whether an answer's key is made of its prompt. A file without prompts is then paired by its ids.
        hint: ends the message about an answer that has no question.
    """

    of_questions: Callable[[Sequence[Any]], list[Key]]
    of_answer: Callable[[ForeignAnswer], Key]
    needs_prompts: bool = True
    hint: str = ""


@dataclass(frozen=True)
class ForeignFiles:
    """What a benchmark declares about files of answers to it that other programs write.

    Attributes:
        pairing: how answers find their questions; None if by their ids alone.
        read_folder: reads the answers in a folder; None if its answers are one file.
        often_left_out: words of the questions that other programs do not ask.
        wrong_prompt: why the answer to a prompt is not one to the benchmark of this name; empty if it may be.
        versions: ends the message about a prompt that asks another question: which versions of the data there are.
    """

    pairing: Pairing | None = None
    read_folder: Callable[[Path], Iterator[ForeignAnswer]] | None = None
    often_left_out: str = ""
    wrong_prompt: Callable[[str, str], str] = lambda name, prompt: ""
    versions: str = ""


def text_of(path: Path) -> str:
    """A text file's content.

    Raises:
        ValueError: it is not UTF-8.
    """
    refuse_special(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: the file is neither UTF-8 text nor an Excel file (.xlsx).") from None
