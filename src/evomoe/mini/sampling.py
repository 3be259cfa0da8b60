"""Pictures sampled at random: eleven kinds of scene, none of them twice."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

from evomoe.mini.scene import (
    COLORS,
    GRID,
    LANDMARKS,
    PATTERNS,
    PEOPLE,
    SHAPES,
    SIZES,
    STYLES,
    THEME_WEIGHTS,
    THEMES,
    TINTS,
    TRANSLATIONS,
    WORDS,
    Digit,
    Scene,
    Thing,
    Writing,
)

if TYPE_CHECKING:
    import numpy as np

LETTER = 8  # pixels from one letter to the next
UNALIGNED = 0.3  # share of texts that begin with any letter of the row
THEMED = 0.6  # share of things that belong to the picture's theme
# Handwritten digits of scikit-learn's set, by number, that each split draws from: later ones have other writers.
DIGIT_RANGES = {"train": (0, 1200), "validation": (1200, 1500), "test": (1500, 1797)}


@dataclass(frozen=True)
class Handwriting:
    """scikit-learn's handwritten digits: ``pixels`` (1797, 8, 8) from 0 to 16, ``values`` (1797,)."""

    pixels: "np.ndarray"
    values: "np.ndarray"

    @classmethod
    def load(cls) -> "Handwriting":
        """Reads them from scikit-learn.

        Raises:
            ImportError: it is not installed.
        """
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError("The handwritten digits come with scikit-learn: pip install scikit-learn.") from error
        digits: Any = load_digits()  # a tuple only if asked for one
        return cls(digits.images, digits.target)


class Ground(TypedDict):
    """What a scene stands on."""

    pattern: str
    tint: str


@dataclass
class Sampler:
    """Scenes of one split.

    Args:
        rng: where all chance comes from.
        handwriting: the digits.
        split: train, validation or test; it decides which handwriting is seen.
        taken: scenes that were given out before, by this sampler or another of the same world; none is given out again.
    """

    rng: random.Random
    handwriting: Handwriting
    split: str
    taken: set[Scene] = field(default_factory=set)

    def __call__(self, kind: str, accept: Callable[[Scene], bool] = lambda scene: True) -> Scene:
        """A new scene of a kind for which ``accept`` is true."""
        while True:
            scene = KINDS[kind](self)
            if scene not in self.taken and accept(scene):
                self.taken.add(scene)
                return scene

    def ground(self) -> Ground:
        return {"pattern": self.rng.choice(PATTERNS), "tint": self.rng.choice(TINTS)}

    def cells(self, count: int, rows: Sequence[int] = range(GRID)) -> list[tuple[int, int]]:
        return self.rng.sample([(row, column) for row in rows for column in range(GRID)], count)

    def thing(self, name: str, cell: tuple[int, int]) -> Thing:
        color, shape = name.split()
        shift = (self.rng.randint(-1, 1), self.rng.randint(-1, 1))
        return Thing(shape, color, self.rng.choice(SIZES), *cell, shift)

    def names(self, count: int) -> list[str]:
        """Coloured shapes that are seen together: most of one theme."""
        (theme,) = self.rng.choices(list(THEME_WEIGHTS), list(THEME_WEIGHTS.values()))
        return [
            self.rng.choice(THEMES[theme])
            if self.rng.random() < THEMED
            else f"{self.rng.choice(COLORS)} {self.rng.choice(SHAPES)}"
            for _ in range(count)
        ]

    def things(self, count: int, rows: Sequence[int] = range(GRID)) -> tuple[Thing, ...]:
        return tuple(self.thing(*pair) for pair in zip(self.names(count), sorted(self.cells(count, rows)), strict=True))

    def writing(self, text: str, row: int) -> Writing:
        """A text that mostly begins with a cell, so that a patch of the cell's size sees two whole letters of the same pair."""
        start = self.rng.randint(0, GRID - math.ceil(len(text) / 2)) * 2
        if self.rng.random() < UNALIGNED:
            start = self.rng.randint(0, GRID * 2 - len(text))
        return Writing(text, row, start * LETTER + self.rng.randint(0, 1))

    def digit(self, row: int, column: int, value: int | None = None) -> Digit:
        while True:
            sample = self.rng.randrange(*DIGIT_RANGES[self.split])
            found = int(self.handwriting.values[sample])
            if value is None or found == value:
                return Digit(found, sample, row, column)

    def number(self) -> str:
        """A number of two or three digits."""
        return str(self.rng.randint(10, 99) if self.rng.random() < 0.5 else self.rng.randint(100, 999))

    def text(self) -> str:
        return self.rng.choice(WORDS) if self.rng.random() < 0.6 else self.number()

    def single(self) -> Scene:
        """One shape, one writing or one handwritten digit: the easiest picture to learn from."""
        row, column = self.rng.randrange(GRID), self.rng.randrange(GRID)
        luck = self.rng.random()
        if luck < 0.5:
            name = f"{self.rng.choice(COLORS)} {self.rng.choice(SHAPES)}"
            return Scene((self.thing(name, (row, column)),), **self.ground())
        if luck < 0.85:
            return Scene(writings=(self.writing(self.text(), row),), **self.ground())
        return Scene(digits=(self.digit(row, column),), **self.ground())

    def shapes(self) -> Scene:
        """Two to five shapes; on every fourth picture a word or number above or below them."""
        count, rows, writings = self.rng.randint(2, 5), list(range(GRID)), ()
        if self.rng.random() < 0.25:
            writings = (self.writing(self.text(), rows.pop(self.rng.choice((0, -1)))),)
        return Scene(self.things(count, rows), writings, **self.ground())

    def crowd(self) -> Scene:
        """Three to six shapes, three of them different."""
        while True:
            scene = Scene(self.things(self.rng.randint(3, 6)), **self.ground())
            if len(scene.names) >= 3:
                return scene

    def page(self) -> Scene:
        """A word, a number or both, some of them with a shape or a handwritten digit."""
        texts = [self.rng.choice(WORDS), self.number()]
        self.rng.shuffle(texts)
        rows = sorted(self.rng.sample(range(GRID), self.rng.choice((1, 2))))
        writings = tuple(self.writing(text, row) for text, row in zip(texts, rows, strict=False))
        (row, column), *cells = self.cells(self.rng.randint(1, 3), [row for row in range(GRID) if row not in rows])
        digits = (self.digit(row, column),) if self.rng.random() < 0.4 else ()
        things = tuple(self.thing(*pair) for pair in zip(self.names(len(cells)), sorted(cells), strict=True))
        return Scene(things, writings, digits, **self.ground())

    def sum(self) -> Scene:
        """Two handwritten digits with a plus sign between them."""
        row, column = self.rng.randrange(GRID), self.rng.randrange(GRID - 2)
        return Scene(digits=(self.digit(row, column), self.digit(row, column + 2)), plus=True, tint=self.rng.choice(TINTS))

    def code(self) -> Scene:
        """Two lines of a program: a number gets a name, then it is added to or taken from."""
        first, row = self.rng.randint(1, 5), self.rng.randrange(GRID - 1)
        sign = self.rng.choice("+-")
        second = self.rng.randint(1, 4 if sign == "+" else first)
        name = self.rng.choice("axn")
        lines = f"{name}={first}", f"{name}{sign}{second}"
        start = self.rng.randint(0, GRID - 2) * 2 * LETTER
        return Scene(writings=tuple(Writing(line, row + n, start) for n, line in enumerate(lines)), **self.ground())

    def foreign(self) -> Scene:
        """A word of the other language, with up to two shapes."""
        row = self.rng.randrange(GRID)
        things = self.things(self.rng.randint(0, 2), [other for other in range(GRID) if other != row])
        return Scene(things, (self.writing(self.rng.choice(list(TRANSLATIONS)), row),), **self.ground())

    def portrait(self) -> Scene:
        """A face."""
        shift = (self.rng.randint(-8, 8), self.rng.randint(-8, 8))
        return Scene(person=self.rng.choice(list(PEOPLE)), shift=shift, **self.ground())

    def landmark(self) -> Scene:
        """Four shapes of one colour that make up a landmark."""
        name = self.rng.choice(list(LANDMARKS))
        height, width = (max(cell[axis] for cell in LANDMARKS[name]) for axis in (0, 1))
        row, column = self.rng.randrange(GRID - height), self.rng.randrange(GRID - width)
        color, shapes = self.rng.choice(COLORS), self.rng.choices(("square", "bar", "diamond"), k=4)
        cells = sorted((row + down, column + right) for down, right in LANDMARKS[name])
        things = tuple(self.thing(f"{color} {shape}", cell) for shape, cell in zip(shapes, cells, strict=True))
        return Scene(things, landmark=name, **self.ground())

    def artwork(self) -> Scene:
        """Two to four shapes, none of them black, in one of the styles."""
        while True:
            things = self.things(self.rng.randint(2, 4))
            if all(thing.color != "black" for thing in things):
                return Scene(things, style=self.rng.choice(STYLES), **self.ground())

    def poster(self) -> Scene:
        """A framed picture with a title and a shape."""
        row = self.rng.choice((0, GRID - 1))
        things = self.things(1, range(1, GRID - 1))
        word = self.rng.choice(WORDS)
        return Scene(things, (self.writing(word, row),), framed=True, **self.ground())


KINDS: dict[str, Callable[[Sampler], Scene]] = {
    name: getattr(Sampler, name)
    for name in ("single", "shapes", "crowd", "page", "sum", "code", "foreign", "portrait", "landmark", "artwork", "poster")
}
