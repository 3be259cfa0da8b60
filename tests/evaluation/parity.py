"""The real answers of LLaVA-1.5-13B, as questions and answers of ours; they lie outside of the project and may be absent."""

import gzip
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evomoe.data.prompts import LETTER_ANSWER, SHORT_ANSWER
from evomoe.evaluation.benchmark import Question
from evomoe.evaluation.benchmarks import mmbench, mme, sqa, textvqa
from evomoe.evaluation.pictures import FilePicture

FOLDER = Path(os.environ.get("EVOMOE_PARITY_DATA") or Path(__file__).parents[2] / "../shared/data/llava-1.5-13b")


def rows(name: str) -> list[dict[str, Any]]:
    with gzip.open(FOLDER / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def expected() -> dict[str, Any]:
    return json.loads((FOLDER / "expected.json").read_text())


def _answers(questions, found) -> dict[str, str]:
    return {question.id: row["prediction"] for question, row in zip(questions, found, strict=True)}


def pope():
    found = rows("pope")
    questions = [
        Question(
            f"{row['input']['category']}/{row['input']['question_id'] % 10_000_000}",
            row["input"]["prompt"].removesuffix(SHORT_ANSWER),
            FilePicture(row["input"]["image"]),
            row["gold"],
            row["input"]["category"],
        )
        for row in found
    ]
    return questions, _answers(questions, found), found


def of_mme(name: str):
    found, seen, questions = rows(name), Counter(), []
    for row in found:
        subtask, image = row["input"]["category"], Path(row["input"]["question_id"]).name
        seen[unit := f"{subtask}/{image}"] += 1
        text = row["input"]["prompt"].removesuffix(SHORT_ANSWER).removesuffix(f" {mme.YES_OR_NO}") + f" {mme.YES_OR_NO}"
        question = mme.MMEQuestion(f"{unit}/{seen[unit]}", text, None, row["gold"].lower(), subtask, unit, image)
        questions.append(question)
    return questions, _answers(questions, found), found


def _cut(prompt: str, choices: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Question and choices out of a prompt; the row's own list has a choice's first line only."""
    starts = [prompt.rindex(f"\n{letter}. {choice}") for letter, choice in zip("ABCDE", choices, strict=False)]
    ends = [*starts[1:], len(prompt)]
    return prompt[: starts[0]], tuple(prompt[start + 4 : end] for start, end in zip(starts, ends, strict=True))


def scienceqa():
    found, questions = rows("sqa"), []
    for row in found:
        given = row["input"]
        body = given["prompt"].removeprefix("<image>\n")
        body = body.removesuffix(LETTER_ANSWER)
        text, choices = _cut(body, given["choices"])
        hint = ""
        if text.startswith("Context: "):
            hint, text = text.removeprefix("Context: ").rsplit("\n", 1)
        picture = FilePicture(given["image"]) if given["image"] else None
        questions.append(sqa.SQAQuestion(given["question_id"], text, picture, row["gold"], choices=choices, hint=hint))
    return questions, _answers(questions, found), found


def of_mmbench():
    found, questions = rows("mmbench_dev_20230712"), []
    for row in found:
        given = row["input"]
        index, choices = given["index"], tuple(given["options"].values())
        hint, _, text = _cut(given["prompt"], choices)[0].rpartition("\n")
        unit = str(index % mmbench.GROUP)
        questions.append(mmbench.MMBenchQuestion(str(index), text, None, row["gold"], unit=unit, choices=choices, hint=hint))
    return questions, _answers(questions, found), found


def of_gqa():
    found = rows("gqa_nogold")
    return (
        [Question(row["input"]["question_id"], row["input"]["prompt"].removesuffix(SHORT_ANSWER)) for row in found],
        None,
        found,
    )


def of_textvqa():
    found, questions = rows("textvqa_nogold"), []
    for number, row in enumerate(found):
        text, words, _ = row["input"]["prompt"].split("\n")
        words = words.removeprefix("Reference OCR token: ")
        tokens = tuple(words.split(", ")) if words else ()
        image = row["input"]["question_id"]
        questions.append(textvqa.TextVQAQuestion(str(number), text, image_id=image, ocr_tokens=tokens))
    return questions, None, found


def asked(row: dict[str, Any]) -> str:
    """What LLaVA asked; MMBench's answer files leave out the picture's mark and the last line."""
    return row["input"]["prompt"].removeprefix("<image>\n").removesuffix(LETTER_ANSWER)
