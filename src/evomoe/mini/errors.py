"""Errors of people and machines: ten annotators who do not quite agree, a text recogniser that misreads."""

import random
from collections import Counter

from evomoe.mini.questions import Asked, misread
from evomoe.mini.scene import Scene, Writing

ANNOTATORS = 10
# How many of the ten give the right answer, and how often.
AGREEING = {10: 30, 9: 25, 8: 20, 7: 10, 6: 5, 5: 5, 4: 3, 3: 2}
MISREAD, MISSED = 0.1, 0.08  # shares of writings


def annotate(asked: Asked, rng: random.Random) -> list[str]:
    """Ten answers, of which the right one is the most frequent; the others are synonyms or mistakes."""
    (right,) = rng.choices(list(AGREEING), list(AGREEING.values()))
    answers = [asked.answer] * right
    others = {}  # as often as each may still be said
    for word in (*asked.also, *asked.wrong):
        others[word] = right - 1
    while len(answers) < ANNOTATORS:
        possible = [word for word, left in others.items() if left]
        said = [word for word in possible if word in asked.also and rng.random() < 0.6] or possible
        other = rng.choice(said) if said else asked.answer
        answers.append(other)
        if other in others:
            others[other] -= 1
    assert Counter(answers).most_common(1)[0][0] == asked.answer
    rng.shuffle(answers)
    return answers


def recognised(scene: Scene, rng: random.Random) -> list[tuple[Writing, str]]:
    """The writings that a text recogniser sees, and what it reads; it knows no handwriting."""
    found = []
    for writing in scene.writings:
        luck = rng.random()
        if luck >= MISSED:
            found.append((writing, misread(writing.text, rng) if luck < MISSED + MISREAD else writing.text))
    return found
