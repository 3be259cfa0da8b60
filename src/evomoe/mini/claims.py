"""MME's fourteen subtasks in the mini world: two claims about a picture, as questions, of which the first alone is true.

Six subtasks mean what they mean in MME: existence, count, position, color, OCR and numerical_calculation. The others ask for
knowledge that a photograph stands for there and that training data tell here: posters, the title of a framed picture;
celebrity, whose face it is (each has a shape and a colour); scene, the pattern of the background; landmark, which
arrangement four shapes make up; artwork, the style of drawing; commonsense_reasoning, what rolls and what has corners;
text_translation, the English for a word of the other language; code_reasoning, the result of two lines of a program.
"""

import random
from collections.abc import Callable

from evomoe.mini.questions import absent, misread
from evomoe.mini.scene import (
    COLORS,
    CORNERS,
    LANDMARKS,
    PATTERNS,
    PEOPLE,
    RELATIONS,
    STYLES,
    TRANSLATIONS,
    WORDS,
    Scene,
    a,
    holds,
)

Claims = tuple[str, str]


def _said(template: str, right: object, wrong: object) -> Claims:
    return template.format(right), template.format(wrong)


def _other(rng: random.Random, known: "list[str] | tuple[str, ...]", right: str) -> str:
    return rng.choice([word for word in known if word != right])


def existence(scene: Scene, rng: random.Random) -> Claims | None:
    return _said("Is there {} in this image?", a(rng.choice(scene.things).name), a(absent(scene, rng)))


def count(scene: Scene, rng: random.Random) -> Claims | None:
    right = len(scene.things)
    return _said("Is there a total of {} objects in this image?", right, right + rng.choice((-1, 1)))


def position(scene: Scene, rng: random.Random) -> Claims | None:
    unique = scene.unique()
    if len(unique) < 2:
        return None
    one, other = rng.sample(unique, 2)
    pairs = [pair for pair in (RELATIONS[:2], RELATIONS[2:]) if any(holds(relation, one, other) for relation in pair)]
    right, wrong = sorted(rng.choice(pairs), key=lambda relation: not holds(relation, one, other))
    return _said(f"Is the {one.name} {{}} the {other.name}?", right, wrong)


def color(scene: Scene, rng: random.Random) -> Claims | None:
    alone = [thing for thing in scene.things if scene.alone(shape=thing.shape)]
    if not alone:
        return None
    thing = rng.choice(alone)
    return _said(f"Is the {thing.shape} in this image {{}}?", thing.color, _other(rng, COLORS, thing.color))


def posters(scene: Scene, rng: random.Random) -> Claims | None:
    title = scene.writings[0].text
    return _said("Is this poster titled {}?", title, _other(rng, WORDS, title))


def celebrity(scene: Scene, rng: random.Random) -> Claims | None:
    """The wrong name is that of a person with the same shape of head, or of any."""
    head = PEOPLE[scene.person][0]
    alike = [name for name, (shape, _) in PEOPLE.items() if shape == head]
    wrong = _other(rng, alike if rng.random() < 0.5 else list(PEOPLE), scene.person)
    return _said("Is the person in this image called {}?", scene.person, wrong)


def background(scene: Scene, rng: random.Random) -> Claims | None:
    return _said("Is the background of this image {}?", scene.pattern, _other(rng, PATTERNS, scene.pattern))


def landmark(scene: Scene, rng: random.Random) -> Claims | None:
    return _said("Is this landmark the {}?", scene.landmark, _other(rng, list(LANDMARKS), scene.landmark))


def artwork(scene: Scene, rng: random.Random) -> Claims | None:
    return _said("Is this artwork in the {} style?", scene.style, _other(rng, STYLES, scene.style))


def ocr(scene: Scene, rng: random.Random) -> Claims | None:
    """About the only writing; a number is taken for one that differs in a numeral."""
    if len(scene.writings) != 1:
        return None
    text = scene.writings[0].text
    wrong = misread(text, rng) if text.isdigit() else _other(rng, WORDS, text)
    return _said("Is {} written in this image?", text, wrong)


def commonsense(scene: Scene, rng: random.Random) -> Claims | None:
    alone = [thing for thing in scene.things if scene.alone(color=thing.color)]
    if not alone:
        return None
    thing = rng.choice(alone)
    claims = f"Can the {thing.color} object roll?", f"Does the {thing.color} object have corners?"
    return claims if CORNERS[thing.shape] == 0 else claims[::-1]


def total(scene: Scene) -> int:
    """The sum of the digits."""
    return sum(digit.value for digit in scene.digits)


def result(scene: Scene) -> int:
    """What the program of two lines comes to."""
    first, second = (writing.text for writing in scene.writings)
    return int(first[2]) + int(second[1:])


def numerical_calculation(scene: Scene, rng: random.Random) -> Claims | None:
    right = total(scene)
    wrong = rng.choice([n for n in range(right - 3, right + 4) if n != right and 0 <= n <= 18])
    return _said("Is the sum of the two digits {}?", right, wrong)


def text_translation(scene: Scene, rng: random.Random) -> Claims | None:
    right = TRANSLATIONS[scene.writings[0].text]
    wrong = _other(rng, list(TRANSLATIONS.values()), right)
    return _said("Is the word in this image translated into English {}?", right, wrong)


def code_reasoning(scene: Scene, rng: random.Random) -> Claims | None:
    right = result(scene)
    return _said("Is the result of the program {}?", right, rng.choice([n for n in range(10) if n != right]))


SUBTASKS: dict[str, tuple[str, Callable[[Scene, random.Random], Claims | None]]] = {
    "existence": ("shapes", existence),
    "count": ("shapes", count),
    "position": ("shapes", position),
    "color": ("shapes", color),
    "posters": ("poster", posters),
    "celebrity": ("portrait", celebrity),
    "scene": ("shapes", background),
    "landmark": ("landmark", landmark),
    "artwork": ("artwork", artwork),
    "OCR": ("page", ocr),
    "commonsense_reasoning": ("shapes", commonsense),
    "numerical_calculation": ("sum", numerical_calculation),
    "text_translation": ("foreign", text_translation),
    "code_reasoning": ("code", code_reasoning),
}
"""By subtask: the kind of scene, and what makes two claims about it."""
