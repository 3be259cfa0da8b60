"""The built-in set: easy-VQA, coloured shapes with questions (PyPI `easy-vqa`: 4,000 training and 1,000 test images).

The package was written by Victor Zhou. Its pictures and questions ship inside the package, so nothing is downloaded.
"""

import json
import os
import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from evomoe.support.errors import OptionError
from evomoe.support.files import write_text

Split = Literal["train", "test"]
Mix = Literal["captions", "warmup", "full"]
QuestionType = Literal["color", "shape", "yes/no", "yes/no negated"]

CAPTION_REQUEST = "describe the image."

_NEGATIONS = {"no", "not"}


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one picture; easy-VQA's have one word for an answer and a `QuestionType`."""

    image_path: str
    question: str
    answer: str
    type: str


def mix_of(question: str) -> QuestionType:
    """Types a question of easy-VQA by its words."""
    words = question.rstrip("?").split()
    if words[0] == "what":
        return "color" if "color" in words else "shape"
    return "yes/no negated" if _NEGATIONS.intersection(words) else "yes/no"


def questions(split: Split) -> list[Question]:
    """All questions of a split, in the order of the package.

    Raises:
        OptionError: There is no such split.
    """
    import easy_vqa

    if split not in get_args(Split):
        raise OptionError("split", f"{split!r} is not one of {', '.join(get_args(Split))}.")
    train = split == "train"
    texts, answers, image_ids = easy_vqa.get_train_questions() if train else easy_vqa.get_test_questions()
    paths = easy_vqa.get_train_image_paths() if train else easy_vqa.get_test_image_paths()
    return [
        Question(paths[image_id], text, answer, mix_of(text))
        for text, answer, image_id in zip(texts, answers, image_ids, strict=True)
    ]


def captions(asked: Iterable[Question]) -> dict[str, str]:
    """Captions such as "a blue rectangle", by picture path, where the questions give away both shape and colour.

    Open questions tell by their answer and by what they take for granted ("what color is the triangle?"), affirmative
    yes/no questions by the answer "yes". A picture of which one of the two stays unknown gets no caption.
    """
    asked = list(asked)
    vocabularies = {kind: {item.answer for item in asked if item.type == kind} for kind in ("color", "shape")}
    known: dict[str, dict[str, str]] = defaultdict(dict)
    for item in asked:
        if item.type in vocabularies or (item.type == "yes/no" and item.answer == "yes"):
            said = {*item.question.rstrip("?").split(), item.answer}
            facts = {kind: word for kind, vocabulary in vocabularies.items() for word in said & vocabulary}
            known[item.image_path].update(facts)
    return {path: f"a {facts['color']} {facts['shape']}" for path, facts in known.items() if len(facts) == 2}


def records(split: Split, mix: Mix, seed: int = 0) -> list[dict[str, Any]]:
    """A split as LLaVA's records, with absolute paths to the pictures, shuffled by `seed`.

    Args:
        split: which.
        mix: "captions": captions alone; "warmup": captions, open questions and yes/no questions without a negation;
            "full": every question as it stands.
        seed: fixes the order.

    Raises:
        OptionError: there is no such split or mix.
    """
    if mix not in get_args(Mix):
        raise OptionError("mix", f"{mix!r} is not one of {', '.join(get_args(Mix))}.")
    asked = questions(split)
    exchanges = [] if mix == "full" else [(path, CAPTION_REQUEST, text) for path, text in captions(asked).items()]
    if mix != "captions":
        used = (item for item in asked if mix == "full" or item.type != "yes/no negated")
        exchanges += [(item.image_path, item.question, item.answer) for item in used]
    random.Random(seed).shuffle(exchanges)
    return [_llava(f"easy-vqa-{split}-{number}", *exchange) for number, exchange in enumerate(exchanges)]


def export(split: Split, path: str | os.PathLike[str], mix: Mix, seed: int = 0) -> None:
    """Writes what ``records`` gives to a JSON file."""
    write_text(Path(path), json.dumps(records(split, mix, seed), indent=1))


def _llava(identity: str, image_path: str, question: str, answer: str) -> dict[str, Any]:
    return {
        "id": identity,
        "image": image_path,
        "conversations": [
            {"from": "human", "value": f"<image>\n{question}"},
            {"from": "gpt", "value": answer},
        ],
    }
