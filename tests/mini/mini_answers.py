"""A second derivation of the mini world's answers: from the words of a question and a plain list of what there is."""

import re

from evomoe.mini.scene import PEOPLE, Scene, Thing


def objects(scene: Scene, words: str) -> list[Thing]:
    """The things that "red circles", "the large star" or "red object" speak of."""
    said = [re.sub(r"^(cross)es$|^(\w+?[^s])s$", lambda m: m[1] or m[2], word) for word in words.split()]
    said = [word for word in said if word not in ("the", "a", "an", "object", "objects")]
    return [thing for thing in scene.things if {*said} <= {thing.color, thing.shape, thing.size}]


def one(scene: Scene, words: str) -> Thing:
    (found,) = objects(scene, words)
    return found


WAYS = {
    "to the left of": lambda a, b: b.column - a.column,
    "to the right of": lambda a, b: a.column - b.column,
    "above": lambda a, b: b.row - a.row,
    "below": lambda a, b: a.row - b.row,
}
WAY = "(to the left of|to the right of|above|below)"
ENGLISH = dict(zip(["gato", "casa", "luna", "pan", "mar", "flor", "libro", "perro", "agua", "rey", "lago", "noche"], ["cat", "house", "moon", "bread", "sea", "flower", "book", "dog", "water", "king", "lake", "night"], strict=True))  # fmt: skip
HEADS = {"Ada": "red circle", "Bob": "green circle", "Cleo": "red square", "Dan": "blue square"}
HEADS |= {"Eve": "green diamond", "Finn": "blue diamond", "Gus": "orange triangle", "Hana": "purple triangle"}
ROUND = ("circle", "ring")
EDGES = {"circle": 0, "ring": 0, "triangle": 3, "square": 4, "diamond": 4, "bar": 4, "star": 10, "cross": 12}


def beside(scene: Scene, way: str, words: str) -> Thing:
    other = one(scene, words)
    (found,) = [thing for thing in scene.things if WAYS[way](thing, other) > 0]
    return found


def program(scene: Scene) -> int:
    first, second = [writing.text for writing in scene.writings]
    name, value = first.split("=")
    return eval(second, {name: int(value)})


def farthest(scene: Scene, way: str) -> str:
    cells = {(thing.row, thing.column): thing.name for thing in scene.things}
    axis, best = {"north": (0, min), "south": (0, max), "west": (1, min), "east": (1, max)}[way]
    (cell,) = [cell for cell in cells if cell[axis] == best(other[axis] for other in cells)]
    return cells[cell]


def landmark(scene: Scene) -> str:
    """By its outline: rows and columns that it spans, and how the four stand."""
    cells = {(thing.row, thing.column) for thing in scene.things}
    height, width = (max(c[axis] for c in cells) - min(c[axis] for c in cells) + 1 for axis in (0, 1))
    return {(4, 1): "Tower", (1, 4): "Bridge", (2, 2): "Castle", (4, 4): "Stairs", (2, 3): "Gate", (3, 2): "Harbor"}[
        height, width
    ]


def written(scene: Scene, pattern: str) -> str:
    (text,) = [writing.text for writing in scene.writings if re.fullmatch(pattern, writing.text)]
    return text


YES_NO = [
    (r"Is there (an? \w+ \w+) in (?:the|this) image", lambda s, a: bool(objects(s, a))),
    (r"Is there a total of (\d+) objects in this image", lambda s, n: sum(1 for _ in s.things) == int(n)),
    (rf"Is the (\w+ \w+) {WAY} the (\w+ \w+)", lambda s, a, way, b: WAYS[way](one(s, a), one(s, b)) > 0),
    (r"Is the background of this image (\w+)", lambda s, a: s.pattern == a),
    (r"Is the person in this image called (\w+)", lambda s, a: HEADS[a] == " ".join(PEOPLE[s.person][::-1])),
    (r"Is the word in this image translated into English (\w+)", lambda s, a: ENGLISH[written(s, r"[a-z]+")] == a),
    (r"Is the sum of the two digits (\d+)", lambda s, n: s.digits[0].value + s.digits[1].value == int(n)),
    (r"Is the result of the program (\d+)", lambda s, n: program(s) == int(n)),
    (r"Is the (\w+)(?: in this image)? (\w+)", lambda s, a, color: one(s, a).color == color),
    (r"Is this poster titled (\w+)", lambda s, a: written(s, ".+") == a),
    (r"Is this landmark the (\w+)", lambda s, a: landmark(s) == a),
    (r"Is this artwork in the (\w+) style", lambda s, a: s.style == a),
    (r"Is (\w+) written in this image", lambda s, a: a in [writing.text for writing in s.writings]),
    (r"Can (the \w+ object) roll", lambda s, a: one(s, a).shape in ROUND),
    (r"Does (the \w+ object) have corners", lambda s, a: one(s, a).shape not in ROUND),
    (r"Are there both (a \w+) and (a \w+)", lambda s, a, b: bool(objects(s, a)) and bool(objects(s, b))),
    (r"Is there either (a \w+) or (a \w+)", lambda s, a, b: bool(objects(s, a)) or bool(objects(s, b))),
    (r"Do (the \w+) and (the \w+) have the same color", lambda s, a, b: one(s, a).color == one(s, b).color),
    (r"Are there more (\w+ objects) than (\w+ objects)", lambda s, a, b: len(objects(s, a)) > len(objects(s, b))),
]
OPEN = [
    (rf"What color is the object {WAY} the (\w+ \w+)", lambda s, way, a: beside(s, way, a).color),
    (rf"What shape is the object {WAY} the (\w+ \w+)", lambda s, way, a: beside(s, way, a).shape),
    (r"What color is (the [\w ]+)", lambda s, a: one(s, a).color),
    (r"What shape is (the \w+ object)", lambda s, a: one(s, a).shape),
    (r"What size is (the \w+ \w+)", lambda s, a: one(s, a).size),
    (r"How many (\w+|\w+ objects) are there", lambda s, a: str(len(objects(s, a)))),
    (r"How many corners does (the \w+ object) have", lambda s, a: str(EDGES[one(s, a).shape])),
    (r"How many corners does a (\w+) have", lambda s, a: str(EDGES[a])),
    (r"What (?:pattern does the background have|is the background of this image)", lambda s: s.pattern),
    (r"Which side of the image is (the \w+ \w+) on, left or right", lambda s, a: "left" if one(s, a).column in (0, 1) else "right"),
    (r"Is (the \w+ \w+) to the left or to the right of (the .+)", lambda s, a, b: "left" if WAYS["to the left of"](one(s, a), one(s, b)) > 0 else "right"),
    (r"Is (the \w+ \w+) above or below (the .+)", lambda s, a, b: "above" if WAYS["above"](one(s, a), one(s, b)) > 0 else "below"),
    (r"Is (the \w+) (\w+) or (\w+)", lambda s, a, b, c: one(s, a).color),
    (r"Which is larger, (the \w+ \w+) or (the \w+ \w+)", lambda s, a, b: max(one(s, a), one(s, b), key=lambda t: t.size == "large").shape),
    (r"What (?:word is written|does the sign say)", lambda s: written(s, r"[a-z]+")),
    (r"What (?:number is written|is the printed number)", lambda s: written(s, r"\d{2,3}")),
    (r"What is written at the top", lambda s: min((w.row, w.text) for w in s.writings)[1]),
    (r"What is written at the bottom", lambda s: max((w.row, w.text) for w in s.writings)[1]),
    (r"What digit is handwritten", lambda s: "".join(str(d.value) for d in s.digits)),
    (r"What is the first letter of the word", lambda s: written(s, r"[a-z]+")[0]),
    (r"Which of these objects can roll", lambda s: "".join({t.shape for t in s.things} & {*ROUND})),
    (r"Which object is farthest (\w+)", farthest),
    (r"What is the sum of the two digits", lambda s: str(s.digits[0].value + s.digits[1].value)),
    (r"What is the result of the program", lambda s: str(program(s))),
    (r"What does the word in this image mean in English", lambda s: ENGLISH[written(s, r"[a-z]+")]),
    (r"What does (\w+) mean in English", lambda s, a: ENGLISH[a]),
    (r"Who is the person in this image", lambda s: s.person),
    (r"Which landmark is this", landmark),
    (r"In which style is this image drawn", lambda s: s.style),
    (r"Where is (the \w+ \w+)", lambda s, a: f"{['top', 'bottom'][one(s, a).row > 1]} {['left', 'right'][one(s, a).column > 1]}"),
    (r"What is the title of this poster", lambda s: written(s, ".+")),
]  # fmt: skip


def derive(text: str, shown: Scene, hint: str = "") -> str:
    """The answer to a question, by its words."""
    if rule := re.fullmatch(r"Every (\w+) object is a (\w+)\.", hint):
        assert text == f"Which object is a {rule[2]}?"
        return one(shown, rule[1]).shape
    for rules, say in ((OPEN, str), (YES_NO, lambda true: "yes" if true else "no")):
        for pattern, answer in rules:
            if match := re.fullmatch(pattern + r"\?", text):
                return say(answer(shown, *match.groups()))
    raise AssertionError(f"no rule for {text!r}")
