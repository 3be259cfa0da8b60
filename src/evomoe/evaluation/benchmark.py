"""What a benchmark is: questions, prompts, a rule that turns answers into a score. Nothing here needs torch."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from evomoe.data.turns import Turn
from evomoe.evaluation.data_folder import DataFolder
from evomoe.evaluation.foreign_answers import ForeignFiles
from evomoe.evaluation.pictures import Picture

ProtocolName = Literal["official", "lmms-eval", "vlmevalkit"]
PROTOCOLS: tuple[ProtocolName, ...] = get_args(ProtocolName)


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
        turns: of a question within a conversation, all of that up to the question, with marks where its pictures stand.
        turn_pictures: the pictures of these turns, in their order.
    """

    id: str
    text: str
    picture: Picture | None = None
    answer: str = ""
    type: str = ""
    unit: str = ""
    turns: tuple[Turn, ...] = field(default=(), kw_only=True)
    turn_pictures: tuple[Picture, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        if not self.unit:
            object.__setattr__(self, "unit", self.id)

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All that it is about."""
        return self.turn_pictures if self.picture is None else (self.picture,)


Row = dict[str, float]
Table = dict[str, Row]


@dataclass(frozen=True)
class Findings:
    """What a benchmark's rule finds in the answers.

    Attributes:
        score: the number that papers report, in ``unit``.
        unit: what the score is, such as "accuracy %" or "points of 2,000".
        standard_error: of the score, in its unit, with how it was found in ``error_method``.
        unparsable: answers that the rule could make nothing of (it says in the benchmark's module what that means).
        tables: the sub-scores, by title, row and column, as the official tool prints them.
        missing: parts that the whole score is made of and that nothing was asked of.
    """

    score: float
    unit: str
    standard_error: float
    error_method: str
    unparsable: int
    tables: dict[str, Table] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """The score of one model on one benchmark: what the rule found (see ``Findings``), and of what and by which rule.

    Attributes:
        benchmark: its name.
        protocol: whose rule was followed.
        scorer: name and version of the rule, such as "pope 1".
        questions: how many were scored.
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

    All that the rest of the package must know of a benchmark is declared here, and each benchmark's own file fills it in.

    Attributes:
        name: the row's name.
        summary: one sentence for ``evomoe list benchmarks``.
        load: reads the questions from the folder of the benchmark's data.
        prompt: the text that a model is asked under a protocol, without the picture's mark.
        score: the rule; the answers are by question id, one for each question.
        max_new_tokens: length of the longest answer, in tokens.
        version: of the rule; grows whenever a score could change.
        rule: the rule's name, if that is not the benchmark's.
        submit: writes the answers in the format of the official server or tool into a folder, and returns the paths.
        unanswered: what stands for a missing answer to a question, so that its rule counts it as wrong.
        part_of_unit: what a question is to those that it is scored with, for the message that it alone has no answer.
        foreign_files: what is special about files of answers that other programs write.
        types: the question types that every version of its data has; empty if any will do.
        counts: how many questions the known versions of its data have; empty if any number is right.
        folders: what its folder below ``data_root`` may be called, the first that is there counting; as itself if empty.
        column: its column in the paper's tables, whose average it then enters; empty if it is not in them.
        divisor: what its score is divided by before it enters an average.
        mini: whether it is a small one of ``evomoe.mini``.
        pictures: whether it always shows some, so that a model of words alone cannot be asked.
    """

    name: str
    summary: str
    load: Callable[[DataFolder], Sequence[Question]]
    prompt: Callable[[Any, ProtocolName], str]
    score: Callable[[Sequence[Any], Mapping[str, str], ProtocolName], Findings]
    max_new_tokens: int
    version: int = 1
    rule: str = ""
    submit: Callable[[Sequence[Any], Mapping[str, str], Path], list[Path]] | None = None
    unanswered: Callable[[Question], str] = lambda question: ""
    part_of_unit: Callable[[Any], str] = lambda question: f"one of the questions of {question.unit}"
    foreign_files: ForeignFiles = ForeignFiles()
    types: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    folders: tuple[str, ...] = ()
    column: str = ""
    divisor: int = 1
    mini: bool = False
    pictures: bool = True

    @property
    def scorer(self) -> str:
        """Name and version of the rule, for results."""
        return f"{self.rule or self.name} {self.version}"

    def data(self, path: str | Path | None) -> DataFolder:
        """Its data in a folder, or beside a file; None for those on the hub."""
        return DataFolder(self.name, path, made_here=self.mini)

    def result(self, questions: Sequence[Any], answers: Mapping[str, str], protocol: ProtocolName) -> Result:
        """Scores the answers, which are by question id, one for each question.

        Raises:
            ValueError: the rule cannot score these questions, or knows no such protocol.
        """
        found = self.score(questions, answers, protocol)
        about = {"benchmark": self.name, "protocol": protocol, "scorer": self.scorer, "questions": len(questions)}
        return Result(**about, **vars(found))
