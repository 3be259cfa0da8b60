"""The mini world in the official files of VQAv2, GQA and TextVQA."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

from evomoe.mini import questions
from evomoe.mini.draw import CELL, SIZE
from evomoe.mini.errors import annotate, recognised
from evomoe.mini.pictures import Studio
from evomoe.mini.questions import Asked, Maker, asked
from evomoe.mini.sampling import LETTER
from evomoe.mini.scene import Writing
from evomoe.mini.text_files import write_json

QUESTIONS = 4  # the most questions about one picture

VQA_KINDS = {"shapes": 6, "crowd": 2, "page": 3}
VQA_MAKERS: dict[Maker, int] = {
    **{questions.color: 4, questions.shape: 3, questions.size: 1, questions.pattern: 1, questions.side: 1},
    **{questions.count: 5, questions.number: 3, questions.digit: 3, questions.word: 3},
    **{questions.exists: 4, questions.has_color: 2, questions.related: 2, questions.more: 1},
}
GQA_KINDS = {"shapes": 3, "crowd": 2}
GQA_TYPES = {  # structural and semantic type by maker
    questions.related_color: ("query", "attr"),
    questions.related_shape: ("query", "cat"),
    questions.sized_color: ("query", "attr"),
    questions.shape: ("query", "cat"),
    questions.side: ("choose", "rel"),
    questions.related: ("verify", "rel"),
    questions.has_color: ("verify", "attr"),
    questions.exists: ("verify", "obj"),
    questions.choose_relation: ("choose", "rel"),
    questions.choose_color: ("choose", "attr"),
    questions.both: ("logical", "obj"),
    questions.same_color: ("compare", "attr"),
    questions.larger: ("compare", "attr"),
}
TEXT_MAKERS: dict[Maker, int] = {
    **{questions.word: 4, questions.number: 4, questions.upper_or_lower: 3, questions.digit: 2, questions.first_letter: 1},
}
# The first words by which VQAv2 groups its questions, longest first.
OPENINGS = ("what color is the", "how many", "is there a", "what is the", "is the", "are there", "what", "which")


def _kind(kinds: dict[str, int], rng: random.Random) -> str:
    return rng.choices(list(kinds), list(kinds.values()))[0]


def answer_type(asked: Asked) -> str:
    """VQAv2's kind of answer."""
    return "yes/no" if asked.answer in ("yes", "no") else "number" if asked.answer.isdigit() else "other"


def question_type(text: str) -> str:
    """VQAv2's group of a question, by its first words."""
    return next((opening for opening in OPENINGS if text.lower().startswith(opening)), "none of the above")


def write_vqav2(folder: Path, studio: Studio, pictures: int) -> None:
    """VQAv2's val2014: questions, ten annotators each, pictures."""
    asks, annotations = [], []
    for image_id in range(1, pictures + 1):
        scene = studio.sampler(_kind(VQA_KINDS, studio.rng))
        studio.save(scene, folder / "val2014" / f"COCO_val2014_{image_id:012d}.jpg")
        for number, question in enumerate(asked(scene, studio.rng, VQA_MAKERS, QUESTIONS)):
            shared = {"image_id": image_id, "question_id": image_id * 1000 + number}
            asks.append({**shared, "question": question.text})
            answers = annotate(question, studio.rng)
            annotations.append(
                {
                    **shared,
                    "question_type": question_type(question.text),
                    "answer_type": answer_type(question),
                    "multiple_choice_answer": Counter(answers).most_common(1)[0][0],
                    "answers": [
                        {"answer": answer, "answer_confidence": _confidence(answer, question), "answer_id": n}
                        for n, answer in enumerate(answers, 1)
                    ],
                }
            )
    header = {"info": {"description": "A small synthetic world in VQA v2's format"}, "license": {}, "data_type": "mscoco"}
    header["data_subtype"] = "val2014"
    write_json(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {**header, "task_type": "Open-Ended", "questions": asks})
    write_json(folder / "v2_mscoco_val2014_annotations.json", {**header, "annotations": annotations})


def _confidence(answer: str, question: Asked) -> str:
    return "yes" if answer == question.answer else "maybe" if answer in question.also else "no"


def write_gqa(folder: Path, studio: Studio, pictures: int) -> None:
    """GQA's testdev_balanced: relational and compositional questions."""
    entries: dict[str, Any] = {}
    types = {maker.__name__: kinds for maker, kinds in GQA_TYPES.items()}
    types["either"] = types["both"]
    for number in range(1, pictures + 1):
        scene = studio.sampler(_kind(GQA_KINDS, studio.rng))
        image_id = f"n{number:06d}"
        studio.save(scene, folder / "images" / f"{image_id}.jpg")
        for order, question in enumerate(asked(scene, studio.rng, dict.fromkeys(GQA_TYPES, 1), QUESTIONS)):
            structural, semantic = types[question.kind]
            steps = [{"operation": "select", "dependencies": [], "argument": name} for name in question.names]
            steps.append({"operation": question.kind, "dependencies": list(range(len(steps))), "argument": ""})
            key = f"20{number:06d}{order}"
            entries[key] = {
                "semantic": steps,
                "entailed": [],
                "equivalent": [key],
                "question": question.text,
                "imageId": image_id,
                "isBalanced": True,
                "groups": {"global": None, "local": f"{structural}-{semantic}"},
                "answer": question.answer,
                "semanticStr": "->".join(f"{step['operation']}: {step['argument']}" for step in steps),
                "annotations": {"question": {}, "answer": {}, "fullAnswer": {}},
                "types": {"detailed": question.kind, "semantic": semantic, "structural": structural},
                "fullAnswer": f"{question.answer.capitalize()}.",
            }
    write_json(folder / "testdev_balanced_questions.json", entries)


def write_textvqa(folder: Path, studio: Studio, pictures: int) -> None:
    """TextVQA's val: words, numbers and digits to read, with what a text recogniser made of them."""
    data, recogniser = [], []
    for number in range(1, pictures + 1):
        scene = studio.sampler("page")
        image_id = f"{number:016x}"
        studio.save(scene, folder / "train_images" / f"{image_id}.jpg")
        tokens = recognised(scene, studio.rng)
        boxes = [_box(*read) for read in tokens]
        recogniser.append({"image_id": image_id, "ocr_tokens": [box["word"] for box in boxes], "ocr_info": boxes})
        for question in asked(scene, studio.rng, TEXT_MAKERS, 2):
            data.append(
                {
                    "question": question.text,
                    "image_id": image_id,
                    "image_classes": sorted({thing.shape for thing in scene.things}),
                    "flickr_original_url": "",
                    "flickr_300k_url": "",
                    "image_width": SIZE,
                    "image_height": SIZE,
                    "answers": annotate(question, studio.rng),
                    "question_tokens": question.text.lower().rstrip("?").split(),
                    "question_id": 34602 + len(data),  # where TextVQA's val begins
                    "set_name": "val",
                }
            )
    header = {"dataset_type": "val", "dataset_name": "textvqa"}
    write_json(folder / "TextVQA_0.5.1_val.json", {**header, "dataset_version": "0.5.1", "data": data})
    write_json(folder / "TextVQA_Rosetta_OCR_v0.2_val.json", {**header, "dataset_version": "0.2", "data": recogniser})


def _box(writing: Writing, token: str) -> dict[str, Any]:
    """What Rosetta's files tell of a token: its text and its place, in shares of the picture."""
    left, top, width = (value / SIZE for value in (writing.start, writing.row * CELL, len(writing.text) * LETTER))
    box = {"top_left_x": left, "top_left_y": top, "width": width, "height": CELL / SIZE}
    return {"word": token, "bounding_box": {**box, "rotation": 0, "roll": 0, "pitch": 0, "yaw": 0}}
