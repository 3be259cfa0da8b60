"""Exercises in words alone: what a language model has learnt before it sees its first picture.

A scene is told instead of shown, and the questions are those that are asked about pictures. Lettered choices, yes/no claims, sums and
comparisons are learnt here many times sooner than beside learning to see; the pictures of stage 1 then need no new skill.
"""

import random

from evomoe.mini import questions
from evomoe.mini.choices import Lettered, background, with_options
from evomoe.mini.claims import SUBTASKS
from evomoe.mini.sampling import Sampler
from evomoe.mini.scene import (
    COLORS,
    LANDMARKS,
    PATTERNS,
    PEOPLE,
    PLACES,
    RELATIONS,
    SHAPES,
    STYLES,
    TRANSLATIONS,
    WORDS,
    Scene,
    holds,
    place,
)
from evomoe.mini.training import Asker, Exchange, Lesson, Mix, claim, conversation, describe, letter, shorts, topics

VOCABULARIES = (
    *(COLORS, SHAPES, PATTERNS, PLACES, WORDS, tuple(TRANSLATIONS.values()), tuple(PEOPLE), tuple(LANDMARKS), STYLES),
    tuple(str(number) for number in range(13)),
)
PAIR = 2  # scenes of so many things are told with where these are


def copying(scene: Scene, rng: random.Random) -> Lettered:
    """Which option is the word that the question names: the letter alone is to be found."""
    known = rng.choice(VOCABULARIES)
    options = tuple(rng.sample(known, min(rng.choices((2, 3, 4), (3, 2, 1))[0], len(known))))
    answer = rng.randrange(len(options))
    return Lettered(f"Which option says {options[answer]}?", options, answer)


def told(scene: Scene) -> str:
    """The scene in words: the caption and, of two things, where they are."""
    sentences = [describe(scene)]
    if len(scene.things) == PAIR:
        one, other = scene.things
        sentences += [f"the {thing.name} is at the {place(thing)}" for thing in scene.things]
        sentences += [f"the {one.name} is {relation} the {other.name}" for relation in RELATIONS if holds(relation, one, other)]
    return "".join(f"{sentence[0].upper()}{sentence[1:]}. " for sentence in sentences).strip() + "\n"


def _lettered(*names: str) -> dict[Asker, int]:
    return {letter(with_options(getattr(questions, name))): 2 for name in names}


def _claims(*names: str) -> dict[Asker, int]:
    return {claim(name): 2 for name in names}


_SINGLE = _lettered("color", "shape", "size", "word", "number") | {letter(background): 1} | _claims("scene", "OCR")
_COUNTED = shorts(count=2, exists=3, has_color=3, choose_color=2, both=2, same_color=2, larger=1, sized_color=1, more=1)
_RELATED = shorts(related=3, choose_relation=3, related_color=2, related_shape=2) | _lettered("choose_relation", "related_color")

LETTERS = Mix(captions=0.0, lessons={"": Lesson(1, topics("") | {letter(copying): 8}, turns=1)})
"""How a letter stands for an option; short, so that it is learnt within minutes."""

EXERCISES = Mix(
    captions=0.0,
    lessons={
        "": Lesson(10, LETTERS.lessons[""].askers, turns=1),
        "single": Lesson(20, shorts(color=1, shape=1, size=1, word=1, number=1, digit=1, pattern=1) | _SINGLE, turns=2),
        "shapes": Lesson(
            25, _RELATED | _COUNTED | _claims("existence", "count", "position", "color") | topics("shapes"), turns=2
        ),
        "page": Lesson(8, shorts(word=1, number=1, digit=1, first_letter=2) | _claims("OCR") | topics("page"), turns=2),
        **{
            kind: Lesson(4, _claims(*(name for name, (of, _) in SUBTASKS.items() if of == kind)) | topics(kind), turns=1)
            for kind in ("sum", "code", "foreign")
        },
    },
)


def exercise(sampler: Sampler, mix: Mix, kind: str, rng: random.Random) -> list[Exchange]:
    """A scene told in words with questions about it; of shapes, there are two."""
    if not kind:
        return conversation(Scene(), mix, kind, rng)
    scene = sampler(kind, lambda scene: kind != "shapes" or len(scene.things) == PAIR)
    exchanges = conversation(scene, mix, kind, rng)
    return [(told(scene) + question if number == 0 else question, answer) for number, (question, answer) in enumerate(exchanges)]
