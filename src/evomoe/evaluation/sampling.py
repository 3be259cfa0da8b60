"""A part of a benchmark's questions, for a quick look."""

import random
from collections.abc import Sequence
from typing import TypeVar

from evomoe.evaluation.benchmark import Question

AnyQuestion = TypeVar("AnyQuestion", bound=Question)


def draw(questions: Sequence[AnyQuestion], limit: int) -> list[AnyQuestion]:
    """At least ``limit`` questions, in their order, the same on every machine; all for 0.

    Units that are scored together are drawn at random and stay whole, so that the last one may exceed the limit. Each question
    type keeps its share, to within a unit, and has at least one unit where the limit allows.
    """
    if not limit or limit >= len(questions):
        return list(questions)
    units: dict[str, list[AnyQuestion]] = {}
    for question in questions:
        units.setdefault(question.unit, []).append(question)
    generator = random.Random(0)  # its random(), unlike its shuffle(), is the same in all versions of Python
    by_type: dict[str, list[str]] = {}
    for unit in sorted(units, key=lambda _: generator.random()):
        by_type.setdefault(units[unit][0].type, []).append(unit)
    # The first of each type come first; the others stand spread over the line, whose every part has the shares of the whole.
    line = {unit: (i > 0, (i + 0.5) / len(some)) for some in by_type.values() for i, unit in enumerate(some)}
    chosen: set[str] = set()
    count = 0
    for unit in sorted(line, key=lambda unit: line[unit]):
        if count >= limit:
            break
        chosen.add(unit)
        count += len(units[unit])
    return [question for question in questions if question.unit in chosen]
