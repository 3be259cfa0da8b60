"""Lettered choices in the mini world: what ScienceQA and MMBench ask."""

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass

from evomoe.mini import questions
from evomoe.mini.claims import result, total
from evomoe.mini.questions import Asked, Maker
from evomoe.mini.scene import (
    CORNERS,
    GRID,
    LANDMARKS,
    PATTERNS,
    PEOPLE,
    PLACES,
    SHAPES,
    STYLES,
    TRANSLATIONS,
    WORDS,
    Scene,
    place,
)


@dataclass(frozen=True)
class Lettered:
    """A question with options, of which ``options[answer]`` is right; ``hint`` says what one must know."""

    text: str
    options: tuple[str, ...]
    answer: int
    hint: str = ""

    def lines(self) -> str:
        """Question and options, a line each, as ScienceQA and MMBench ask in LLaVA's form."""
        return "\n".join([self.text, *(f"{letter}. {option}" for letter, option in zip("ABCDE", self.options, strict=False))])

    @property
    def letter(self) -> str:
        return "ABCDE"[self.answer]


OPTIONS = {2: 3, 3: 2, 4: 1}  # how many options, and how often

LetteredMaker = Callable[[Scene, random.Random], Lettered | None]


def lettered(asked: Asked | None, rng: random.Random, hint: str = "") -> Lettered | None:
    """An open question with two to four options, if it has so many wrong answers; few are more frequent."""
    if asked is None:
        return None
    (count,) = rng.choices(list(OPTIONS), list(OPTIONS.values()))
    options = [asked.answer, *rng.sample(asked.wrong, min(count - 1, len(asked.wrong)))]
    rng.shuffle(options)
    return Lettered(asked.text, tuple(options), options.index(asked.answer), hint)


def _of(text: str, answer: str, known: "list[str] | tuple[str, ...]", rng: random.Random, hint: str = "") -> Lettered:
    choice = lettered(Asked(text, answer, "", tuple(word for word in dict.fromkeys(known) if word != answer)), rng, hint)
    assert choice is not None
    return choice


def with_options(maker: Maker) -> LetteredMaker:
    """The maker of an open question as one of a lettered question."""

    @functools.wraps(maker)
    def ask(scene: Scene, rng: random.Random) -> Lettered | None:
        return lettered(maker(scene, rng), rng)

    return ask


def corners(scene: Scene, rng: random.Random) -> Lettered | None:
    alone = [thing for thing in scene.things if scene.alone(color=thing.color)]
    if not alone:
        return None
    thing = rng.choice(alone)
    known = sorted({str(number) for number in CORNERS.values()})
    return _of(f"How many corners does the {thing.color} object have?", str(CORNERS[thing.shape]), known, rng)


def roller(scene: Scene, rng: random.Random) -> Lettered | None:
    """Which of the shapes there can roll, if just one can."""
    shapes = sorted({thing.shape for thing in scene.things})
    round_ones = [shape for shape in shapes if CORNERS[shape] == 0]
    if len(round_ones) != 1 or len(shapes) < 2:
        return None
    return _of("Which of these objects can roll?", round_ones[0], shapes, rng)


INVENTED = ("bloop", "zog", "wug", "dax", "fep")


def invented(scene: Scene, rng: random.Random) -> Lettered | None:
    """The hint names a colour; one shape has it."""
    alone = [thing for thing in scene.things if scene.alone(color=thing.color)]
    shapes = sorted({thing.shape for thing in scene.things})
    if not alone or len(shapes) < 2:
        return None
    thing, name = rng.choice(alone), rng.choice(INVENTED)
    return _of(f"Which object is a {name}?", thing.shape, shapes, rng, f"Every {thing.color} object is a {name}.")


def compass(scene: Scene, rng: random.Random) -> Lettered | None:
    """Which shape lies farthest in a direction of the map."""
    rule = "On this map, north is at the top and west is at the left."
    direction, key = rng.choice(
        [
            ("north", lambda thing: thing.row),
            ("south", lambda thing: -thing.row),
            ("west", lambda thing: thing.column),
            ("east", lambda thing: -thing.column),
        ]
    )
    ordered = sorted(scene.unique(), key=key)
    if len(ordered) < 2 or len(ordered) < len(scene.things) or key(ordered[0]) == key(ordered[1]):
        return None
    names = [thing.name for thing in ordered]
    return _of(f"Which object is farthest {direction}?", names[0], names, rng, rule)


def translation(scene: Scene, rng: random.Random) -> Lettered:
    right = TRANSLATIONS[scene.writings[0].text]
    return _of("What does the word in this image mean in English?", right, list(TRANSLATIONS.values()), rng)


def addition(scene: Scene, rng: random.Random) -> Lettered:
    near = [str(n) for n in range(total(scene) - 3, total(scene) + 4) if 0 <= n <= 18]
    return _of("What is the sum of the two digits?", str(total(scene)), near, rng)


def program(scene: Scene, rng: random.Random) -> Lettered:
    return _of("What is the result of the program?", str(result(scene)), [str(n) for n in range(10)], rng)


def translation_in_words(scene: Scene, rng: random.Random) -> Lettered:
    """A question without a picture."""
    foreign = rng.choice(list(TRANSLATIONS))
    return _of(f"What does {foreign} mean in English?", TRANSLATIONS[foreign], list(TRANSLATIONS.values()), rng)


def corners_in_words(scene: Scene, rng: random.Random) -> Lettered:
    """A question without a picture."""
    shape = rng.choice(SHAPES)
    return _of(f"How many corners does a {shape} have?", str(CORNERS[shape]), [str(n) for n in CORNERS.values()], rng)


def person(scene: Scene, rng: random.Random) -> Lettered:
    return _of("Who is the person in this image?", scene.person, list(PEOPLE), rng)


def landmark(scene: Scene, rng: random.Random) -> Lettered:
    return _of("Which landmark is this?", scene.landmark, list(LANDMARKS), rng)


def style(scene: Scene, rng: random.Random) -> Lettered:
    return _of("In which style is this image drawn?", scene.style, STYLES, rng)


def background(scene: Scene, rng: random.Random) -> Lettered:
    return _of("What is the background of this image?", scene.pattern, PATTERNS, rng)


def where(scene: Scene, rng: random.Random) -> Lettered | None:
    if not (unique := scene.unique()):
        return None
    thing = rng.choice(unique)
    return _of(f"Where is the {thing.name}?", place(thing), PLACES, rng)


def title(scene: Scene, rng: random.Random) -> Lettered:
    return _of("What is the title of this poster?", scene.writings[0].text, WORDS, rng)


@dataclass(frozen=True)
class Topic:
    """A kind of lettered question: where its benchmark files it, what is seen (empty: no picture), and what asks it."""

    group: str
    name: str
    kind: str
    maker: LetteredMaker


SQA = (
    Topic("natural science", "physics", "shapes", roller),
    Topic("natural science", "units-and-measurement", "shapes", corners),
    Topic("natural science", "biology", "shapes", invented),
    Topic("social science", "geography", "crowd", compass),
    Topic("social science", "economics", "sum", addition),
    Topic("language science", "vocabulary", "foreign", translation),
    Topic("language science", "word-study", "page", with_options(questions.word)),
    Topic("language science", "vocabulary", "", translation_in_words),
    Topic("natural science", "units-and-measurement", "", corners_in_words),
)
"""ScienceQA's subjects and topics; the last two are asked without a picture."""

INSTANCE, CROSS = "finegrained_perception (instance-level)", "finegrained_perception (cross-instance)"
MMBENCH = (
    Topic("coarse_perception", "image_scene", "shapes", background),
    Topic("coarse_perception", "image_style", "artwork", style),
    Topic("coarse_perception", "image_topic", "poster", title),
    Topic(INSTANCE, "object_localization", "shapes", where),
    Topic(INSTANCE, "attribute_recognition", "shapes", with_options(questions.color)),
    Topic(INSTANCE, "celebrity_recognition", "portrait", person),
    Topic(INSTANCE, "ocr", "page", with_options(questions.word)),
    Topic(CROSS, "spatial_relationship", "shapes", with_options(questions.choose_relation)),
    Topic(CROSS, "attribute_comparison", "shapes", with_options(questions.larger)),
    Topic("attribute_reasoning", "physical_property_reasoning", "shapes", roller),
    Topic("attribute_reasoning", "function_reasoning", "shapes", invented),
    Topic("attribute_reasoning", "identity_reasoning", "landmark", landmark),
    Topic("relation_reasoning", "nature_relation", "shapes", with_options(questions.related_color)),
    Topic("logic_reasoning", "structuralized_imagetext_understanding", "code", program),
)
"""MMBench's l2-categories and categories."""

assert GRID == 4  # `where` tells quarters
