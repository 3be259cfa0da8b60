"""The mini world as data: what a picture shows, exactly, and the words for it.

A picture is a grid of four rows and four columns. A cell holds a coloured shape or a handwritten digit; a writing has a row
to itself. Left, right, above and below are told by columns and rows, so no relation hangs on a pixel.
"""

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

GRID = 4

COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "black")
SHAPES = ("circle", "square", "triangle", "cross", "star", "diamond", "ring", "bar")
SIZES = ("small", "large")
PATTERNS = ("plain", "striped", "dotted", "checked")
TINTS = ("white", "cream", "gray", "sky")
STYLES = ("flat", "inked", "shaded")
CORNERS = {"circle": 0, "ring": 0, "triangle": 3, "square": 4, "diamond": 4, "bar": 4, "star": 10, "cross": 12}

# What is often seen together: a picture has a theme, and most of its shapes are of the theme's.
THEMES = {
    "garden": ("green star", "red circle", "yellow circle", "green triangle", "purple star", "orange ring"),
    "street": ("red triangle", "blue square", "black bar", "yellow diamond", "black ring", "red ring"),
    "kitchen": ("orange circle", "blue ring", "yellow bar", "cyan square", "red square", "blue bar"),
    "toys": ("blue circle", "red star", "yellow square", "green cross", "orange triangle", "purple diamond"),
    "night": ("yellow star", "black circle", "purple ring", "cyan diamond", "black square", "purple cross"),
}
THEME_WEIGHTS = {"garden": 8, "street": 5, "kitchen": 3, "toys": 2, "night": 1}

WORDS = (
    *("bus", "cafe", "taxi", "bank", "park", "shop", "hotel", "music", "pizza", "radio", "exit", "open"),
    *("sale", "milk", "tea", "juice", "lake", "hill", "zoo", "gift", "book", "film", "ship", "train"),
    *("farm", "fish", "cake", "lamp", "road", "stop", "mail", "gold", "wind", "king", "jazz", "city"),
)
TRANSLATIONS = {
    **{"gato": "cat", "casa": "house", "luna": "moon", "pan": "bread", "mar": "sea", "flor": "flower"},
    **{"libro": "book", "perro": "dog", "agua": "water", "rey": "king", "lago": "lake", "noche": "night"},
}
PEOPLE = {
    **{"Ada": ("circle", "red"), "Bob": ("circle", "green"), "Cleo": ("square", "red"), "Dan": ("square", "blue")},
    **{"Eve": ("diamond", "green"), "Finn": ("diamond", "blue"), "Gus": ("triangle", "orange"), "Hana": ("triangle", "purple")},
}
# A landmark is four shapes of one colour in these cells, seen from the first of them.
LANDMARKS = {
    "Tower": ((0, 0), (1, 0), (2, 0), (3, 0)),
    "Bridge": ((0, 0), (0, 1), (0, 2), (0, 3)),
    "Castle": ((0, 0), (0, 1), (1, 0), (1, 1)),
    "Stairs": ((0, 0), (1, 1), (2, 2), (3, 3)),
    "Gate": ((0, 0), (0, 2), (1, 0), (1, 2)),
    "Harbor": ((0, 0), (1, 0), (2, 0), (2, 1)),
}


@dataclass(frozen=True)
class Thing:
    """A coloured shape in a cell; ``shift`` moves it by pixels."""

    shape: str
    color: str
    size: str
    row: int
    column: int
    shift: tuple[int, int] = (0, 0)

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Writing:
    """A word, a number or a line of code in a row; ``start`` is the pixel at which its first letter begins."""

    text: str
    row: int
    start: int = 0


@dataclass(frozen=True)
class Digit:
    """A handwritten digit in a cell; ``sample`` is its number in scikit-learn's set."""

    value: int
    sample: int
    row: int
    column: int


@dataclass(frozen=True)
class Scene:
    """Everything that a picture shows. Two scenes are equal if they show the same, whatever their ``grain``.

    Attributes:
        person: whose face fills the picture; empty for a picture without a face.
        landmark: which landmark the things make up; empty if none.
        plus: whether a plus sign stands between two digits.
        framed: whether a frame runs around it, as around posters.
        shift: moves a face by pixels.
    """

    things: tuple[Thing, ...] = ()
    writings: tuple[Writing, ...] = ()
    digits: tuple[Digit, ...] = ()
    pattern: str = "plain"
    tint: str = "white"
    style: str = "flat"
    person: str = ""
    landmark: str = ""
    plus: bool = False
    framed: bool = False
    shift: tuple[int, int] = (0, 0)

    @cached_property
    def names(self) -> Counter[str]:
        """How often each coloured shape is there."""
        return Counter(thing.name for thing in self.things)

    def alone(self, **wanted: str) -> Thing | None:
        """The one thing with these attributes, if there is exactly one."""
        found = self.matching(**wanted)
        return found[0] if len(found) == 1 else None

    def matching(self, **wanted: str) -> list[Thing]:
        """The things with these attributes."""
        return [thing for thing in self.things if all(getattr(thing, key) == value for key, value in wanted.items())]

    def unique(self) -> list[Thing]:
        """The things that colour and shape tell from all others."""
        return [thing for thing in self.things if self.names[thing.name] == 1]


RELATIONS = ("to the left of", "to the right of", "above", "below")


def holds(relation: str, one: Thing, other: Thing) -> bool:
    """Whether ``one`` stands in the relation to ``other``, by rows and columns."""
    return {
        "to the left of": one.column < other.column,
        "to the right of": one.column > other.column,
        "above": one.row < other.row,
        "below": one.row > other.row,
    }[relation]


def place(thing: Thing) -> str:
    """The quarter of the picture that a thing is in, such as "top left"."""
    return f"{'top' if thing.row < GRID // 2 else 'bottom'} {'left' if thing.column < GRID // 2 else 'right'}"


PLACES = tuple(f"{vertical} {horizontal}" for vertical, horizontal in itertools.product(("top", "bottom"), ("left", "right")))


def listed(parts: Iterable[str]) -> str:
    """ "a, b and c"."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def a(name: str) -> str:
    """A name with its article: "a red circle", "an orange ring"."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
