"""What a benchmark is: questions, prompts, a rule that turns answers into a score. Nothing here needs torch."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from evomoe.words import counted

if TYPE_CHECKING:
    from PIL.Image import Image

    from evomoe.evaluation.sources import DataFolder

ProtocolName = Literal["official", "lmms-eval", "vlmevalkit"]
PROTOCOLS: tuple[ProtocolName, ...] = get_args(ProtocolName)

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
LETTER_ANSWER = "\nAnswer with the option's letter from the given choices directly."


class Picture(Protocol):
    """A picture that is not read before it is needed."""

    @property
    def key(self) -> str:
        """Names the picture: questions about the same one have equal keys, and it is decoded and encoded once for all."""
        ...

    def open(self) -> "Image":
        """Decodes it to RGB; raises BadImageError, naming it."""
        ...

    def fingerprint(self) -> str:
        """A hash of its content: tells it from another picture of the same name."""
        ...


@dataclass(frozen=True)
class Question:
    """One question of a benchmark; a benchmark whose scorer needs more adds fields.

    Attributes:
        id: names it in answer files; unique within the benchmark.
        text: the question as the benchmark has it.
        picture: what it is about; None for a question without a picture.
        answer: the right answer; empty where it is not public.
        type: the group that it is reported in.
        unit: questions of the same unit are scored together (MME's pairs, MMBench's rotations); its own id otherwise.
    """

    id: str
    text: str
    picture: Picture | None = None
    answer: str = ""
    type: str = ""
    unit: str = ""

    def __post_init__(self) -> None:
        if not self.unit:
            object.__setattr__(self, "unit", self.id)


Row = dict[str, float]
Table = dict[str, Row]


@dataclass(frozen=True)
class Result:
    """The score of one model on one benchmark.

    Attributes:
        benchmark: its name.
        protocol: whose rule was followed.
        scorer: name and version of the scorer, such as "pope 1".
        score: the number that papers report, in ``unit``.
        unit: what the score is, such as "accuracy %" or "points of 2,000".
        standard_error: of the score, in its unit, with how it was found in ``error_method``.
        questions: how many were scored.
        unparsable: answers that the rule could make nothing of (it says in the benchmark's module what that means).
        tables: the sub-scores, by title, row and column, as the official tool prints them.
        missing: parts that the whole score is made of and that nothing was asked of.
    """

    benchmark: str
    protocol: str
    scorer: str
    score: float
    unit: str
    standard_error: float
    error_method: str
    questions: int
    unparsable: int
    tables: dict[str, Table] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Benchmark:
    """A row of ``BENCHMARKS``.

    Attributes:
        name: the row's name.
        summary: one sentence for ``evomoe list benchmarks``.
        load: reads the questions from the folder of the benchmark's data.
        prompt: the text that a model is asked under a protocol, without the picture's mark.
        score: the rule; the answers are by question id, one for each question.
        max_new_tokens: length of the longest answer, in tokens.
        version: of the scorer; grows whenever a score could change.
        submit: writes the answers in the format of the official server or tool into a folder, and returns the paths.
        unanswered: what stands for a missing answer to a question, so that its rule counts it as wrong.
        types: the question types that every version of its data has; empty if any will do.
        counts: how many questions the known versions of its data have; empty if any number is right.
        folders: what its folder below ``--data-root`` may be called, the first that is there counting; as itself if empty.
        mini: whether it is a small one of ``evomoe.data.mini``.
    """

    name: str
    summary: str
    load: "Callable[[DataFolder], Sequence[Question]]"
    prompt: Callable[[Any, ProtocolName], str]
    score: Callable[[Sequence[Any], Mapping[str, str], ProtocolName], Result]
    max_new_tokens: int
    version: int = 1
    submit: Callable[[Sequence[Any], Mapping[str, str], Path], list[Path]] | None = None
    unanswered: Callable[[Question], str] = lambda question: ""
    types: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    folders: tuple[str, ...] = ()
    mini: bool = False

    @property
    def scorer(self) -> str:
        """Name and version of the rule, for results."""
        return f"{self.name} {self.version}"


def check_answers(name: str, questions: Sequence[Question], answers: Mapping[str, str]) -> dict[str, str]:
    """The answers to these questions, in their order.

    Raises:
        ValueError: questions have no answer, or answers no question: how many, and the first of them.
    """
    known = {question.id for question in questions}
    unknown = [identity for identity in answers if identity not in known]
    missing = [question.id for question in questions if question.id not in answers]
    if unknown:
        raise ValueError(
            f"{name}: {counted(len(unknown), 'answer')} of {len(answers):,} {'is' if len(unknown) == 1 else 'are'} to no question "
            f"of these annotations, first {unknown[0]!r}; the questions are {next(iter(known))!r} and so on. Are the two files of one version?"
        )
    if missing:
        raise ValueError(
            f"{name}: {counted(len(missing), 'question')} of {len(questions):,} {'has' if len(missing) == 1 else 'have'} no answer, "
            f"first {missing[0]!r}; add the answers, or count these as wrong with --allow-missing."
        )
    return {question.id: answers[question.id] for question in questions}


def check_unique(name: str, identities: Sequence[str], files: str = "") -> None:
    """Raises ValueError if an id occurs twice: how many do, the first, and in which files."""
    seen: set[str] = set()
    twice = [identity for identity in identities if identity in seen or seen.add(identity)]
    if twice:
        occur, where = "occurs" if len(twice) == 1 else "occur", f", in {files}" if files else ""
        raise ValueError(f"{name}: {counted(len(twice), 'id')} {occur} twice, first {twice[0]!r}{where}.")


def check_labels(name: str, questions: Sequence[Question], server: str) -> None:
    """Raises ValueError if a question has no public right answer: only the server can score these."""
    if any(not question.answer for question in questions):
        raise ValueError(
            f"{name}: the right answers of this split are not public, so that it cannot be scored here. Write the answers in the "
            f"server's format (the benchmark's submission) and upload them to {server}."
        )
