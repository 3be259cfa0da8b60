"""Training conversations about the mini world, in LLaVA's JSON and in the words in which the benchmarks ask."""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from evomoe.data.prompts import LETTER_ANSWER, OCR_MARK, SHORT_ANSWER
from evomoe.mini import questions
from evomoe.mini.choices import MMBENCH, SQA, LetteredMaker, Topic, background, where, with_options
from evomoe.mini.claims import SUBTASKS
from evomoe.mini.errors import recognised
from evomoe.mini.questions import Maker
from evomoe.mini.scene import Scene, a, listed

Exchange = tuple[str, str]
Asker = Callable[[Scene, random.Random], Exchange | None]
IMAGE = "<image>\n"
CAPTION_REQUEST = "Describe the image."


def describe(scene: Scene) -> str:
    """A caption: what is there, in reading order."""
    if scene.person:
        return f"a portrait of {scene.person} on a {scene.pattern} background"
    said = [((thing.row, thing.column), a(f"{thing.size} {thing.name}")) for thing in scene.things]
    for writing in scene.writings:
        kind = "number" if writing.text.isdigit() else "word" if writing.text.isalpha() else "line"
        said.append(((writing.row, 0), f"the {kind} {writing.text}"))
    said += [((digit.row, digit.column), f"a handwritten {digit.value}") for digit in scene.digits]
    parts = listed(part for _, part in sorted(said))
    if scene.landmark:
        parts = f"the {scene.landmark} of {parts}"
    return f"{'a poster with ' if scene.framed else ''}{parts} on a {scene.pattern} background"


def short(maker: Maker) -> Asker:
    """Asks for a single word."""

    def ask(scene: Scene, rng: random.Random) -> Exchange | None:
        asked = maker(scene, rng)
        return None if asked is None else (asked.text + SHORT_ANSWER, asked.answer)

    return ask


def reading(maker: Maker) -> Asker:
    """Asks for a single word, with what a text recogniser read."""

    def ask(scene: Scene, rng: random.Random) -> Exchange | None:
        if (asked := maker(scene, rng)) is None:
            return None
        tokens = ", ".join(token for _, token in recognised(scene, rng))
        return (f"{asked.text}\n{OCR_MARK} {tokens}{SHORT_ANSWER}", asked.answer)

    return ask


def claim(subtask: str) -> Asker:
    """Asks one of the two questions of an MME subtask."""

    def ask(scene: Scene, rng: random.Random) -> Exchange | None:
        claims = SUBTASKS[subtask][1](scene, rng)
        true = rng.random() < 0.5
        return None if claims is None else (claims[not true] + SHORT_ANSWER, "yes" if true else "no")

    return ask


def letter(maker: LetteredMaker, before_hint: str = "") -> Asker:
    """Asks for the letter of a choice; ScienceQA puts a word before the hint."""

    def ask(scene: Scene, rng: random.Random) -> Exchange | None:
        choice = maker(scene, rng)
        if choice is None:
            return None
        hint = f"{before_hint}{choice.hint}\n" if choice.hint else ""
        return hint + choice.lines() + LETTER_ANSWER, choice.letter

    return ask


def named(topic: Topic) -> Asker:
    """Asks a choice's question without its options, for a word."""

    def ask(scene: Scene, rng: random.Random) -> Exchange | None:
        choice = topic.maker(scene, rng)
        return None if choice is None else (choice.text + SHORT_ANSWER, choice.options[choice.answer])

    return ask


@dataclass(frozen=True)
class Lesson:
    """What is asked about a kind of scene.

    Attributes:
        weight: how often such scenes come.
        askers: what asks, and how often.
        turns: the most questions about one picture: few where one answer gives another away.
    """

    weight: int
    askers: dict[Asker, int]
    turns: int = 4


@dataclass(frozen=True)
class Mix:
    """What a stage learns from.

    Attributes:
        captions: share of pictures that are described; nothing else is asked about these, as the answer would be in the text.
        lessons: by kind of scene; a kind without a name has no picture.
    """

    captions: float
    lessons: dict[str, Lesson]


def topics(kind: str) -> dict[Asker, int]:
    """Every lettered question of ScienceQA and MMBench about a kind of scene."""
    asked = {letter(topic.maker, "Context: "): 2 for topic in SQA if topic.kind == kind}
    return asked | {letter(topic.maker): 2 for topic in MMBENCH if topic.kind == kind}


def _claims(kind: str) -> dict[Asker, int]:
    return {claim(name): 2 for name, (of, _) in SUBTASKS.items() if of == kind}


def shorts(**weights: int) -> dict[Asker, int]:
    """Questions for a single word, by their makers' names."""
    return {short(getattr(questions, name)): weight for name, weight in weights.items()}


def _fact(kind: str) -> Lesson:
    """One question about the one thing that there is to know about such a scene: by claim, by letter, or for a word."""
    named_too = {named(topic): 1 for topic in (*SQA, *MMBENCH) if topic.kind == kind}
    return Lesson(6, _claims(kind) | topics(kind) | named_too, turns=1)


def _reads(weight: int, **weights: int) -> dict[Asker, int]:
    return {reading(getattr(questions, name)): weight * times for name, times in weights.items()} | shorts(**weights)


_FACTS = {kind: _fact(kind) for kind in ("sum", "code", "foreign", "portrait", "landmark", "artwork", "poster")}
_EASY = {
    **{"color": 4, "shape": 4, "size": 2, "count": 4, "exists": 6, "has_color": 3, "pattern": 1, "side": 3},
    **{"word": 2, "number": 2},
}
_LITTLE = dict.fromkeys(("related_color", "related_shape", "choose_color", "both", "same_color", "larger", "sized_color"), 1)
_HARD = {
    **{"related": 3, "choose_relation": 3, "related_color": 4, "related_shape": 4, "choose_color": 1, "both": 2, "same_color": 2},
    **{"larger": 2, "more": 1, "sized_color": 2, "count": 2, "exists": 2, "side": 1},
}

# A picture of one object is where the forms of an answer are learnt: a word, a letter, yes or no.
_SINGLE = {letter(with_options(maker)): 4 for maker in (questions.color, questions.shape, questions.word, questions.number)}
_SINGLE |= {letter(maker): 2 for maker in (background, where)} | {
    claim(name): 3 for name in ("scene", "commonsense_reasoning", "OCR")
}

STAGE1 = Mix(
    captions=0.3,
    lessons={
        "": Lesson(6, topics(""), turns=1),
        "single": Lesson(34, shorts(**_EASY, digit=4) | _SINGLE, turns=2),
        "shapes": Lesson(28, shorts(**_EASY, **_LITTLE, related=2, choose_relation=2) | _claims("shapes") | topics("shapes")),
        "crowd": Lesson(12, shorts(**_EASY, **_LITTLE, related=2, choose_relation=1) | topics("crowd")),
        "page": Lesson(
            16,
            _reads(1, word=3, number=3, digit=2, upper_or_lower=1, first_letter=1) | _claims("page") | topics("page"),
            turns=2,
        ),
        **_FACTS,
    },
)
"""The general mix: captions, easy questions, and a little of every benchmark."""

STAGE2 = Mix(
    captions=0.0,
    lessons={
        "shapes": Lesson(24, shorts(**_HARD) | _claims("shapes") | topics("shapes")),
        "crowd": Lesson(20, shorts(**_HARD) | topics("crowd")),
        "page": Lesson(
            16,
            _reads(2, word=2, number=3, digit=2, upper_or_lower=3, first_letter=2) | _claims("page") | topics("page"),
            turns=2,
        ),
        "": Lesson(4, topics(""), turns=1),
        **_FACTS,
    },
)
"""The richer mix: relations, comparisons, counting, reading, lettered choices, yes/no."""


def conversation(scene: Scene, mix: Mix, kind: str, rng: random.Random) -> list[Exchange]:
    """A caption, or questions about a scene: no asker twice, and no question twice in other words."""
    if kind and rng.random() < mix.captions:
        return [(CAPTION_REQUEST, describe(scene))]
    found: dict[str, Exchange] = {}
    lesson = mix.lessons[kind]
    left = dict(lesson.askers)
    while left and len(found) < lesson.turns:
        (asker,) = rng.choices(list(left), list(left.values()))
        del left[asker]
        if (exchange := asker(scene, rng)) is not None:
            found.setdefault(exchange[0].partition("\n")[0], exchange)
    return list(found.values())


def record(identity: str, image: str | None, exchanges: list[Exchange]) -> dict[str, Any]:
    """A record of LLaVA's JSON, its picture shown at the beginning."""
    spoken = list(itertools.chain.from_iterable(exchanges))
    if image is not None:
        spoken[0] = IMAGE + spoken[0]
    turns = [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(spoken)]
    return {"id": identity} | ({"image": image} if image is not None else {}) | {"conversations": turns}
