"""Questions about a scene with their answers, told by the scene alone.

Each maker takes a scene and a source of chance and returns a question, or None if the scene has nothing to ask that way.
"""

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from evomoe.mini.scene import COLORS, PATTERNS, RELATIONS, SHAPES, SIZES, WORDS, Scene, Thing, Writing, a, holds


@dataclass(frozen=True)
class Asked:
    """A question with its answer.

    Attributes:
        kind: the maker's name, without which GQA's types cannot be told.
        wrong: answers that are not right but could be, for lettered choices and mistaken annotators.
        also: other words for the right answer.
        names: the things that it names, for GQA's annotations.
    """

    text: str
    answer: str
    kind: str
    wrong: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


Maker = Callable[[Scene, random.Random], Asked | None]
Pair = TypeVar("Pair")

SYNONYMS = {
    **{"purple": ("violet",), "cyan": ("turquoise", "light blue"), "circle": ("disc", "ball"), "bar": ("rectangle",)},
    **{"square": ("box",), "cross": ("plus",), "diamond": ("rhombus",), "large": ("big",), "small": ("little",)},
    **{"dotted": ("dots", "spotted"), "striped": ("stripes",), "checked": ("checkered",), "plain": ("none",)},
    **{str(n): (word,) for n, word in enumerate(("zero", "one", "two", "three", "four", "five", "six"))},
}


def _open(text: str, answer: str, kind: str, known: Sequence[str], *named: Thing) -> Asked:
    wrong = tuple(word for word in known if word != answer)
    return Asked(text, answer, kind, wrong, SYNONYMS.get(answer, ()), tuple(thing.name for thing in named))


def _verdict(text: str, true: bool, kind: str, *named: Thing) -> Asked:
    return Asked(text, ("no", "yes")[true], kind, (("yes", "no")[true],), names=tuple(thing.name for thing in named))


def _pick(rng: random.Random, things: Sequence[Thing]) -> Thing | None:
    return rng.choice(things) if things else None


def _pair(scene: Scene, rng: random.Random) -> tuple[Thing, Thing] | None:
    """Two things that their names tell from all others."""
    if len(unique := scene.unique()) < 2:
        return None
    one, other = rng.sample(unique, 2)
    return one, other


def _relation(rng: random.Random, one: Thing, other: Thing) -> str | None:
    """A relation in which two things stand, or fail to stand because they stand in its opposite."""
    axes = ([RELATIONS[:2]] if one.column != other.column else []) + ([RELATIONS[2:]] if one.row != other.row else [])
    return rng.choice(rng.choice(axes)) if axes else None


def color(scene: Scene, rng: random.Random) -> Asked | None:
    thing = _pick(rng, [thing for thing in scene.things if scene.alone(shape=thing.shape)])
    return None if thing is None else _open(f"What color is the {thing.shape}?", thing.color, "color", COLORS, thing)


def shape(scene: Scene, rng: random.Random) -> Asked | None:
    thing = _pick(rng, [thing for thing in scene.things if scene.alone(color=thing.color)])
    return None if thing is None else _open(f"What shape is the {thing.color} object?", thing.shape, "shape", SHAPES, thing)


def size(scene: Scene, rng: random.Random) -> Asked | None:
    thing = _pick(rng, scene.unique())
    return None if thing is None else _open(f"What size is the {thing.name}?", thing.size, "size", SIZES, thing)


def sized_color(scene: Scene, rng: random.Random) -> Asked | None:
    """The colour of the large one of several of a shape."""
    things = [t for t in scene.things if len(scene.matching(shape=t.shape)) > 1 and scene.alone(shape=t.shape, size=t.size)]
    thing = _pick(rng, things)
    return (
        None
        if thing is None
        else _open(f"What color is the {thing.size} {thing.shape}?", thing.color, "sized_color", COLORS, thing)
    )


def count(scene: Scene, rng: random.Random) -> Asked | None:
    if not scene.things:
        return None
    numbers = [str(n) for n in range(7)]
    thing = rng.choice(scene.things)
    word, found = rng.choice(
        [
            ("objects", scene.things),
            (f"{thing.shape}s" if thing.shape != "cross" else "crosses", scene.matching(shape=thing.shape)),
            (f"{thing.color} objects", scene.matching(color=thing.color)),
        ]
    )
    return _open(f"How many {word} are there?", str(len(found)), "count", numbers)


def exists(scene: Scene, rng: random.Random) -> Asked | None:
    if not scene.things:
        return None
    thing = rng.choice(scene.things)
    if rng.random() < 0.5:
        return _verdict(f"Is there {a(thing.name)} in the image?", True, "exists", thing)
    name = absent(scene, rng)
    return _verdict(f"Is there {a(name)} in the image?", False, "exists")


def absent(scene: Scene, rng: random.Random) -> str:
    """A coloured shape that is not there; every other one shares colour or shape with one that is."""
    while True:
        name = f"{rng.choice(COLORS)} {rng.choice(SHAPES)}"
        if scene.things and rng.random() < 0.5:
            one, other = rng.choice(scene.things), rng.choice(scene.things)
            name = f"{one.color} {other.shape}"
            if name in scene.names:
                name = rng.choice((f"{one.color} {rng.choice(SHAPES)}", f"{rng.choice(COLORS)} {one.shape}"))
        if name not in scene.names:
            return name


def has_color(scene: Scene, rng: random.Random) -> Asked | None:
    thing = _pick(rng, [thing for thing in scene.things if scene.alone(shape=thing.shape)])
    if thing is None:
        return None
    said = thing.color if rng.random() < 0.5 else rng.choice([color for color in COLORS if color != thing.color])
    return _verdict(f"Is the {thing.shape} {said}?", said == thing.color, "has_color", thing)


def pattern(scene: Scene, rng: random.Random) -> Asked | None:
    return _open("What pattern does the background have?", scene.pattern, "pattern", PATTERNS)


def side(scene: Scene, rng: random.Random) -> Asked | None:
    thing = _pick(rng, scene.unique())
    if thing is None:
        return None
    text = f"Which side of the image is the {thing.name} on, left or right?"
    return _open(text, "left" if thing.column < 2 else "right", "side", ("left", "right"), thing)


def related(scene: Scene, rng: random.Random) -> Asked | None:
    """Whether one thing stands in a relation to another."""
    if (pair := _pair(scene, rng)) is None or (relation := _relation(rng, *pair)) is None:
        return None
    one, other = pair
    return _verdict(f"Is the {one.name} {relation} the {other.name}?", holds(relation, one, other), "related", one, other)


def choose_relation(scene: Scene, rng: random.Random) -> Asked | None:
    if (pair := _pair(scene, rng)) is None or (relation := _relation(rng, *pair)) is None:
        return None
    one, other = pair
    words, choices = (
        ("to the left or to the right of", ("left", "right")) if "to" in relation else ("above or below", ("above", "below"))
    )
    opposite = RELATIONS[:2] if "to" in relation else RELATIONS[2:]
    answer = choices[0] if holds(opposite[0], one, other) else choices[1]
    return _open(f"Is the {one.name} {words} the {other.name}?", answer, "choose_relation", choices, one, other)


def _neighbour(scene: Scene, rng: random.Random) -> tuple[Thing, str, Thing] | None:
    """A thing, and a relation in which it alone stands to another."""
    found = []
    for other in scene.unique():
        for relation in RELATIONS:
            standing = [thing for thing in scene.things if thing != other and holds(relation, thing, other)]
            if len(standing) == 1:
                found.append((standing[0], relation, other))
    return rng.choice(found) if found else None


def related_color(scene: Scene, rng: random.Random) -> Asked | None:
    if (found := _neighbour(scene, rng)) is None:
        return None
    thing, relation, other = found
    return _open(f"What color is the object {relation} the {other.name}?", thing.color, "related_color", COLORS, thing, other)


def related_shape(scene: Scene, rng: random.Random) -> Asked | None:
    if (found := _neighbour(scene, rng)) is None:
        return None
    thing, relation, other = found
    return _open(f"What shape is the object {relation} the {other.name}?", thing.shape, "related_shape", SHAPES, thing, other)


def choose_color(scene: Scene, rng: random.Random) -> Asked | None:
    thing = _pick(rng, [thing for thing in scene.things if scene.alone(shape=thing.shape)])
    if thing is None:
        return None
    choices = [thing.color, rng.choice([color for color in COLORS if color != thing.color])]
    rng.shuffle(choices)
    return _open(f"Is the {thing.shape} {choices[0]} or {choices[1]}?", thing.color, "choose_color", choices, thing)


def both(scene: Scene, rng: random.Random) -> Asked | None:
    """Whether both of two shapes are there, or either."""
    if not scene.things:
        return None
    there = sorted({thing.shape for thing in scene.things})
    missing = [shape for shape in SHAPES if shape not in there]
    all_of = rng.random() < 0.5
    # Half of the answers are yes: "both" needs two that are there, "either" is false of two that are not.
    wanted = rng.random() < 0.5
    if all_of:
        if wanted and len(there) < 2:
            return None
        shapes = rng.sample(there, 2) if wanted else [rng.choice(there), rng.choice(missing)]
    else:
        shapes = [rng.choice(there), rng.choice(missing)] if wanted else rng.sample(missing, 2)
    rng.shuffle(shapes)
    text = "Are there both a {} and a {}?" if all_of else "Is there either a {} or a {}?"
    true = (all if all_of else any)(shape in there for shape in shapes)
    return _verdict(text.format(*shapes), true, "both" if all_of else "either")


def _balanced(rng: random.Random, pairs: Iterable[Pair], true: Callable[[Pair], bool]) -> Pair | None:
    """One of the pairs: true of it or not, equally often; if it is true of none, mostly nothing, lest "no" be the safe guess."""
    by_truth: dict[bool, list[Pair]] = {True: [], False: []}
    for pair in pairs:
        by_truth[true(pair)].append(pair)
    if not by_truth[True] and rng.random() < 0.8:
        return None
    found = by_truth[rng.random() < 0.5]
    return rng.choice(found) if found else None


def same_color(scene: Scene, rng: random.Random) -> Asked | None:
    alone = [thing for thing in scene.things if scene.alone(shape=thing.shape)]
    pair = _balanced(rng, itertools.permutations(alone, 2), lambda pair: pair[0].color == pair[1].color)
    if pair is None:
        return None
    text = f"Do the {pair[0].shape} and the {pair[1].shape} have the same color?"
    return _verdict(text, pair[0].color == pair[1].color, "same_color", *pair)


def larger(scene: Scene, rng: random.Random) -> Asked | None:
    if (pair := _pair(scene, rng)) is None or pair[0].size == pair[1].size or pair[0].shape == pair[1].shape:
        return None
    one, other = pair
    answer = one.shape if one.size == "large" else other.shape
    text = f"Which is larger, the {one.name} or the {other.name}?"
    return _open(text, answer, "larger", (one.shape, other.shape), one, other)


def more(scene: Scene, rng: random.Random) -> Asked | None:
    """Whether there are more things of one colour than of another."""
    counts = Counter(thing.color for thing in scene.things)
    pair = _balanced(rng, itertools.permutations(sorted(counts), 2), lambda pair: counts[pair[0]] > counts[pair[1]])
    if pair is None:
        return None
    return _verdict(f"Are there more {pair[0]} objects than {pair[1]} objects?", counts[pair[0]] > counts[pair[1]], "more")


def _written(scene: Scene, rng: random.Random, numbers: bool) -> Writing | None:
    found = [writing for writing in scene.writings if writing.text.isdigit() == numbers]
    return found[0] if len(found) == 1 else None


def misread(text: str, rng: random.Random) -> str:
    """The text with one letter or numeral read as another."""
    place = rng.randrange(len(text))
    others = "0123456789" if text.isdigit() else "abcdefghijklmnoprstuvwz"
    return text[:place] + rng.choice([other for other in others if other != text[place]]) + text[place + 1 :]


def word(scene: Scene, rng: random.Random) -> Asked | None:
    found = _written(scene, rng, numbers=False)
    text = rng.choice(("What word is written?", "What does the sign say?"))
    return None if found is None else _open(text, found.text, "word", WORDS)


def number(scene: Scene, rng: random.Random) -> Asked | None:
    if (found := _written(scene, rng, numbers=True)) is None:
        return None
    near = tuple(sorted({misread(found.text, rng) for _ in range(6)}))
    return _open(rng.choice(("What number is written?", "What is the printed number?")), found.text, "number", near)


def upper_or_lower(scene: Scene, rng: random.Random) -> Asked | None:
    """The upper or the lower one of two writings."""
    if len(scene.writings) != 2:
        return None
    upper = rng.random() < 0.5
    found, other = sorted(scene.writings, key=lambda writing: writing.row, reverse=not upper)
    text = f"What is written at the {'top' if upper else 'bottom'}?"
    return _open(text, found.text, "upper_or_lower", (other.text, misread(found.text, rng)))


def digit(scene: Scene, rng: random.Random) -> Asked | None:
    if len(scene.digits) != 1:
        return None
    return _open("What digit is handwritten?", str(scene.digits[0].value), "digit", "0123456789")


def first_letter(scene: Scene, rng: random.Random) -> Asked | None:
    if (found := _written(scene, rng, numbers=False)) is None:
        return None
    letters = sorted({word[0] for word in WORDS})
    return _open("What is the first letter of the word?", found.text[0], "first_letter", letters)


def asked(scene: Scene, rng: random.Random, makers: dict[Maker, int], count: int) -> list[Asked]:
    """Up to ``count`` different questions about a scene, by makers drawn with these weights."""
    found: dict[str, Asked] = {}
    for _ in range(count * 6):
        (maker,) = rng.choices(list(makers), list(makers.values()))
        question = maker(scene, rng)
        if question is not None:
            found.setdefault(question.text, question)
        if len(found) == count:
            break
    return list(found.values())
