"""The mini world in the official files of ScienceQA, POPE, MME and MMBench."""

import base64
import csv
import io
import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TypeVar

from evomoe.mini.choices import MMBENCH, SQA, Lettered, Topic
from evomoe.mini.claims import SUBTASKS
from evomoe.mini.pictures import Studio, encoded
from evomoe.mini.scene import COLORS, SHAPES, Scene, a
from evomoe.mini.text_files import write_json, write_lines

POPE_SPLITS = ("random", "popular", "adversarial")
POPE_QUESTIONS = 3  # with the answer yes, and as many with no, about each picture
POPE_POOL = 1000  # scenes in which objects are counted; the pictures are the first of them
MME_IN_FOLDERS = ("artwork", "celebrity", "landmark", "posters", "scene")  # these have images/ and questions_answers_YN/
ROTATION = 1_000_000

Asked = TypeVar("Asked")


def _ask(topic: Topic, studio: Studio) -> tuple[Scene | None, Lettered]:
    """A new scene of a topic, and a question about it."""
    if not topic.kind:
        choice = topic.maker(Scene(), studio.rng)
        assert choice is not None
        studio.advance()
        return None, choice
    return _about(topic.kind, topic.maker, studio)


def _about(kind: str, maker: Callable[[Scene, Random], Asked | None], studio: Studio) -> tuple[Scene, Asked]:
    """A new scene of a kind that has something to ask, and what is asked."""
    while True:
        scene = studio.sampler(kind)
        if (asked := maker(scene, studio.rng)) is not None:
            return scene, asked


def write_sqa(folder: Path, studio: Studio, count: int) -> None:
    """ScienceQA's test split: lettered choices, some with a hint, some without a picture."""
    problems = {}
    for number, topic in zip(range(1, count + 1), itertools.cycle(SQA)):
        scene, choice = _ask(topic, studio)
        if scene is not None:
            studio.save(scene, folder / "images" / "test" / str(number) / "image.png")
        problems[str(number)] = {
            "question": choice.text,
            "choices": list(choice.options),
            "answer": choice.answer,
            "hint": choice.hint,
            "image": None if scene is None else "image.png",
            "task": "closed choice",
            "grade": f"grade{2 + number % 7}",
            "subject": topic.group,
            "topic": topic.name,
            "category": topic.name,
            "skill": topic.maker.__name__,
            "lecture": "",
            "solution": "",
            "split": "test",
        }
    write_json(folder / "problems.json", problems)
    write_json(folder / "pid_splits.json", {"train": [], "val": [], "test": list(problems)})


def negatives(scene: Scene, counts: Counter[str], together: dict[str, Counter[str]], studio: Studio) -> dict[str, list[str]]:
    """Objects that are not there, by POPE's split: any; the most frequent; those that most often go with what is there."""
    known = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
    missing = [name for name in known if name not in scene.names]
    beside = Counter({name: sum(together[there][name] for there in scene.names) for name in missing})
    return {
        "random": studio.rng.sample(missing, POPE_QUESTIONS),
        "popular": sorted(missing, key=lambda name: -counts[name])[:POPE_QUESTIONS],
        "adversarial": sorted(missing, key=lambda name: (-beside[name], -counts[name]))[:POPE_QUESTIONS],
    }


def write_pope(folder: Path, studio: Studio, pictures: int) -> None:
    """POPE's three files: the same questions about what is there, and other ones about what is not."""
    pool = [studio.sampler("crowd") for _ in range(max(pictures, POPE_POOL))]
    counts, together = cooccurrence(pool)
    rows: dict[str, list[str]] = {split: [] for split in POPE_SPLITS}
    for number, scene in enumerate(pool[:pictures], 1):
        image = f"COCO_val2014_{number:012d}.jpg"
        studio.save(scene, folder / "val2014" / image)
        there = studio.rng.sample(sorted(scene.names), POPE_QUESTIONS)
        for split, missing in negatives(scene, counts, together, studio).items():
            for name in itertools.chain.from_iterable(zip(there, missing, strict=True)):
                label = "yes" if name in scene.names else "no"
                row = {"question_id": len(rows[split]) + 1, "image": image, "text": f"Is there {a(name)} in the image?"}
                rows[split].append(json.dumps(row | {"label": label}))
    for split, lines in rows.items():
        write_lines(folder / "coco" / f"coco_pope_{split}.json", lines)


def cooccurrence(scenes: list[Scene]) -> tuple[Counter[str], dict[str, Counter[str]]]:
    """In how many scenes each object is, and each with each other."""
    counts: Counter[str] = Counter()
    together: dict[str, Counter[str]] = {f"{color} {shape}": Counter() for color in COLORS for shape in SHAPES}
    for scene in scenes:
        counts.update(scene.names.keys())
        for one, other in itertools.permutations(scene.names, 2):
            together[one][other] += 1
    return counts, together


def write_mme(folder: Path, studio: Studio, pictures: int) -> None:
    """MME's folders: for each subtask that many pictures with a question that is answered yes and one that is answered no."""
    for subtask, (kind, maker) in SUBTASKS.items():
        home = folder / "MME_Benchmark_release_version" / subtask
        images, texts = (home / "images", home / "questions_answers_YN") if subtask in MME_IN_FOLDERS else (home, home)
        for number in range(1, pictures + 1):
            scene, claims = _about(kind, maker, studio)
            studio.save(scene, images / f"{number:04d}.jpg")
            lines = [f"{text} Please answer yes or no.\t{answer}" for text, answer in zip(claims, ("Yes", "No"), strict=True)]
            studio.rng.shuffle(lines)
            write_lines(texts / f"{number:04d}.txt", lines)


def write_mmbench(folder: Path, studio: Studio, groups: int) -> None:
    """MMBench's dev table: each question once for every rotation of its options."""
    rotations: dict[int, list[list[object]]] = {}
    for number, topic in zip(range(1, groups + 1), itertools.cycle(MMBENCH)):
        scene, choice = _ask(topic, studio)
        assert scene is not None
        picture = base64.b64encode(encoded(studio.draw(scene))).decode()
        count = len(choice.options)
        for turn in range(count):
            options = [*choice.options[turn:], *choice.options[:turn], *[""] * (4 - count)]
            answer = "ABCD"[(choice.answer - turn) % count]
            facts = [topic.name, picture, "mini", topic.group, "", "dev"]
            rotations.setdefault(turn, []).append([turn * ROTATION + number, choice.text, choice.hint, *options, answer, *facts])
    table = io.StringIO(newline="")
    writer = csv.writer(table, delimiter="\t", lineterminator="\n")
    names = (
        "index",
        "question",
        "hint",
        "A",
        "B",
        "C",
        "D",
        "answer",
        "category",
        "image",
        "source",
        "l2-category",
        "comment",
        "split",
    )
    writer.writerow(names)
    for rows in rotations.values():
        writer.writerows(rows)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mmbench_dev_20230712.tsv").write_bytes(table.getvalue().encode())
