"""Checks of questions and answers, with messages that say how many are wrong, and which first."""

from collections.abc import Mapping, Sequence

from evomoe.evaluation.benchmark import Question
from evomoe.support.text import counted


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
            f"first {missing[0]!r}; add the answers, or count these as wrong with `allow_missing`."
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
