import itertools
import random
import re
from collections import Counter, defaultdict

from mini_answers import derive

from evomoe.data.prompts import LETTER_ANSWER, SHORT_ANSWER
from evomoe.mini import choices, claims, draw, questions, sampling, scene, words
from evomoe.mini.errors import annotate, recognised
from evomoe.mini.questions import Asked
from evomoe.mini.scene import Scene, Writing


def test_every_maker_tells_the_truth(handwriting):
    """Hundreds of questions of every kind."""
    sampler = sampling.Sampler(random.Random(0), handwriting, "train")
    makers = [maker for maker in vars(questions).values() if getattr(maker, "__annotations__", {}).get("return") == Asked | None]
    makers = [maker for maker in makers if not maker.__name__.startswith("_")]
    assert len(makers) == 23
    asked = Counter()
    for kind, maker in itertools.product(("shapes", "crowd", "page"), makers):
        for _ in range(60):
            shown = sampler(kind)
            if (found := maker(shown, sampler.rng)) is not None:
                assert derive(found.text, shown) == found.answer, (found, shown)
                assert found.answer not in (*found.wrong, *found.also)
                asked[maker.__name__] += 1
                asked[maker.__name__, found.answer] += 1
    assert all(asked[maker.__name__] >= 15 for maker in makers)
    for name in ("exists", "has_color", "related", "both", "same_color", "more"):  # the answer cannot be guessed
        assert 0.3 < asked[name, "yes"] / asked[name] < 0.7, name


def test_every_claim_and_choice_tells_the_truth(handwriting):
    sampler = sampling.Sampler(random.Random(1), handwriting, "train")
    for (kind, maker), _ in itertools.product(claims.SUBTASKS.values(), range(40)):
        shown = sampler(kind)
        if (pair := maker(shown, sampler.rng)) is not None:
            assert [derive(text, shown) for text in pair] == ["yes", "no"], (pair, shown)
    for topic, _ in itertools.product((*choices.SQA, *choices.MMBENCH), range(40)):
        shown = sampler(topic.kind) if topic.kind else Scene()
        if (choice := topic.maker(shown, sampler.rng)) is not None:
            assert choice.options[choice.answer] == derive(choice.text, shown, choice.hint), (choice, shown)
            assert 2 <= len(choice.options) == len({*choice.options}) <= 4


def test_exercises_in_words_tell_where_two_things_are_and_ask_what_is_true(handwriting):
    sampler, shown = sampling.Sampler(random.Random(3), handwriting, "train"), [Scene()]

    def sample(kind, accept):
        shown[0] = sampler(kind, accept)
        return shown[0]

    asked = Counter()
    for kind, number in itertools.product(words.EXERCISES.lessons, range(150)):
        shown[0] = Scene()
        exchanges = words.exercise(sample, words.EXERCISES, kind, sampler.rng)
        for text, answer in exchanges:
            form = LETTER_ANSWER if text.endswith(LETTER_ANSWER) else SHORT_ANSWER
            lines = (
                text.removesuffix(form).removeprefix(words.told(shown[0]) if kind else "").removeprefix("Context: ").split("\n")
            )
            hint = "" if lines[0].endswith("?") or "says" in lines[0] else lines.pop(0)
            if form == LETTER_ANSWER:
                answer = dict(line.split(". ") for line in lines[1:])[answer]
            copied = re.fullmatch(r"Which option says (.*)\?", lines[0])
            assert answer == (copied[1] if copied else derive(lines[0], shown[0], hint)), (text, number)
            asked[kind, form] += 1
        assert not kind or exchanges == [] or exchanges[0][0].startswith(words.told(shown[0]))
    assert min(asked[kind, LETTER_ANSWER] for kind in words.EXERCISES.lessons) > 40
    one, other = (scene.Thing("star", "red", "large", 0, 3), scene.Thing("bar", "blue", "small", 2, 3))
    assert words.told(Scene((one, other))) == (
        "A large red star and a small blue bar on a plain background. The red star is at the top right. "
        "The blue bar is at the bottom right. The red star is above the blue bar.\n"
    )


def test_no_scene_is_sampled_twice(handwriting):
    taken = set()
    samplers = [sampling.Sampler(random.Random(0), handwriting, "train", taken) for _ in range(2)]
    one, other = ([sampler("shapes") for _ in range(5)] for sampler in samplers)
    assert len({*one, *other}) == 10


def near(pixel: tuple[int, ...], ink: tuple[int, ...]) -> bool:
    return max(abs(a - b) for a, b in zip(pixel, ink, strict=True)) < 45


def test_things_are_where_they_are_said_to_be(handwriting):
    sampler = sampling.Sampler(random.Random(2), handwriting, "train")
    for _ in range(12):
        shown = sampler("crowd")
        pixels = draw.draw(shown, handwriting, 1).load()
        colors = {cell: Counter() for cell in itertools.product(range(4), range(4))}
        places = defaultdict(list)
        for y, x in itertools.product(range(64), range(64)):
            for color, ink in draw.INK.items():
                if near(pixels[x, y], ink):
                    colors[y // 16, x // 16][color] += 1
                    places[y // 16, x // 16, color].append((x, y))
        there = {(thing.row, thing.column): thing for thing in shown.things}
        assert len(there) == len(shown.things)
        for cell, found in colors.items():
            assert (
                ([color for color, count in found.items() if count >= 10] == [there[cell].color]) if cell in there else not found
            )
            if cell in there:
                spots = places[*cell, there[cell].color]
                for axis, (middle, shift) in enumerate(zip(cell[::-1], there[cell].shift, strict=True)):
                    center = sum(spot[axis] for spot in spots) / len(spots)
                    assert abs(center - (middle * 16 + 7.5 + shift)) < 2.2, (there[cell], center)


def test_writings_are_drawn_letter_by_letter(handwriting):
    image = draw.draw(Scene(writings=(scene.Writing("milk", 2, 9),)), handwriting)
    dark = {(x, y) for x, y in itertools.product(range(64), range(64)) if near(image.getpixel((x, y)), draw.INK["black"])}
    assert {y // 16 for _, y in dark} == {2}
    assert {(x - 9) // 8 for x, _ in dark} == {0, 1, 2, 3}
    letters = [frozenset((x - 9 - 8 * n, y) for x, y in dark if (x - 9) // 8 == n) for n in range(4)]
    assert len({*letters}) == 4
    digit = scene.Digit(0, 0, 1, 3)
    box = draw.draw(Scene(digits=(digit,)), handwriting).convert("L").point(lambda level: 255 * (level < 128)).getbbox()
    assert box[0] >= 48 and 16 <= box[1] < box[3] <= 32


def test_annotators_disagree_now_and_then():
    rng = random.Random(0)
    question = Asked("What color is it?", "purple", "color", ("red", "blue", "green"), ("violet",))
    answers = [annotate(question, rng) for _ in range(400)]
    assert {len(ten) for ten in answers} == {10}
    agreeing = Counter(ten.count("purple") for ten in answers)
    assert agreeing[10] > 80 and min(agreeing) == 3
    others = Counter(answer for ten in answers for answer in ten)
    assert others["violet"] > others["red"] > 0
    yes = [annotate(Asked("Is it?", "yes", "exists", ("no",)), rng).count("yes") for _ in range(400)]
    assert min(yes) > 5


def test_the_text_recogniser_misses_and_misreads_now_and_then():
    """Of 3,000 writings 8 % are missing and 10 % have one wrong letter; the standard errors are about half a percent."""
    shown = Scene(writings=tuple(Writing("stop", row) for row in range(3000)))
    found = recognised(shown, random.Random(0))
    assert 0.06 < 1 - len(found) / 3000 < 0.10
    wrong = [read for _, read in found if read != "stop"]
    assert 0.08 < len(wrong) / 3000 < 0.12
    assert all(len(read) == 4 and sum(a != b for a, b in zip(read, "stop", strict=True)) == 1 for read in wrong)
    rows = [writing.row for writing, _ in found]
    assert rows == sorted(set(rows))
