"""Tiny folders in the official formats of the benchmarks: two or three questions about pictures of one colour."""

import base64
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

RED, BLUE = (250, 0, 0), (0, 0, 250)


def encoded(colour: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


def write(path: Path, content: str | bytes | list | dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))


def lines(records: list[dict]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def ten(answer: str, other: str = "other", count: int = 10) -> list[dict]:
    return [{"answer": answer if i < 6 else other, "answer_confidence": "yes", "answer_id": i + 1} for i in range(count)]


def vqav2(folder: Path) -> None:
    annotations = [
        {"question_id": 42000, "image_id": 42, "question_type": "what color is the", "answer_type": "other",
         "multiple_choice_answer": "red", "answers": ten("red")},
        {"question_id": 42001, "image_id": 42, "question_type": "is the", "answer_type": "yes/no",
         "multiple_choice_answer": "yes", "answers": ten("yes", "yes")},
    ]  # fmt: skip
    asked = [
        {"image_id": 42, "question": "What color is the sky?", "question_id": 42000},
        {"image_id": 42, "question": "Is the sky red?", "question_id": 42001},
    ]
    write(folder / "v2_mscoco_val2014_annotations.json", {"annotations": annotations})
    write(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": asked})
    write(folder / "val2014/COCO_val2014_000000000042.jpg", encoded(RED))


def gqa(folder: Path) -> None:
    types = {"detailed": "x", "semantic": "attr", "structural": "query"}
    record = {"question": "What color is it?", "imageId": "n1", "isBalanced": True, "answer": "red", "types": types}
    verify = {**record, "question": "Is it red?", "answer": "yes", "types": {**types, "structural": "verify"}}
    write(folder / "testdev_balanced_questions.json", {"1": record, "2": verify, "3": {**record, "isBalanced": False}})
    write(folder / "images/n1.jpg", encoded(RED))


def sqa(folder: Path) -> None:
    problem = {
        "question": "What is it?", "choices": ["red", "blue"], "answer": 0, "hint": "Look.", "image": "image.png", "task": "closed",
        "grade": "grade8", "subject": "natural science", "topic": "physics", "category": "light", "skill": "see", "split": "test",
    }  # fmt: skip
    text = {**problem, "image": None, "hint": "", "grade": "grade2", "subject": "language science", "answer": 1}
    write(folder / "problems.json", {"5": problem, "7": text, "9": problem})
    write(folder / "pid_splits.json", {"test": ["7", "5"], "train": ["9"]})
    write(folder / "images/test/5/image.png", encoded(RED))


def textvqa(folder: Path) -> None:
    record = {"question": "What does it SAY?", "image_id": "ab1", "answers": ["stop"] * 6 + ["halt"] * 4, "question_id": 34602}
    blank = {**record, "question": "Who?", "question_id": 34603, "image_id": "ab2"}
    write(folder / "TextVQA_0.5.1_val.json", {"data": [record, blank]})
    words = [{"image_id": "ab1", "ocr_tokens": ["STOP", "now"]}, {"image_id": "ab2", "ocr_tokens": []}]
    write(folder / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": words})
    for name in ("ab1", "ab2"):
        write(folder / f"train_images/{name}.jpg", encoded(RED))


def pope(folder: Path) -> None:
    for split in ("random", "popular", "adversarial"):
        records = [
            {
                "question_id": number,
                "image": "COCO_val2014_000000000001.jpg",
                "text": f"Is there a {name} in the image?",
                "label": label,
            }
            for number, (name, label) in enumerate((("cat", "yes"), (f"{split} dog", "no")), 1)
        ]
        write(folder / f"coco/coco_pope_{split}.json", lines(records))
    write(folder / "val2014/COCO_val2014_000000000001.jpg", encoded(RED))


def mme(folder: Path) -> None:
    release = folder / "MME_Benchmark_release_version"
    pair = "Is it red?  Please answer yes or no.\tYes\nIs it blue? Please answer yes or no.\tNo\n"
    write(release / "color/000001.txt", pair)
    write(release / "color/000001.jpg", encoded(RED))
    write(release / "artwork/questions_answers_YN/7.txt", pair.rstrip("\n"))
    write(release / "artwork/images/7.png", encoded(RED))
    write(release / "code_reasoning/0001.txt", pair.replace("\n", "\r\n"))
    write(release / "code_reasoning/0001.png", encoded(BLUE))


MMBENCH_HEADER = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category", "comment", "split"]  # fmt: skip


def mmbench_rows() -> list[list[str]]:
    red, blue = (base64.b64encode(encoded(colour)).decode() for colour in (RED, BLUE))
    rest = ["source", "coarse", "nan", "dev"]
    return [
        ["3", "Which?", "nan", "red", "blue", "green", "", "A", "colour", red, *rest],
        ["4", '"Quoted\tquestion"', "A hint.", "yes", "no", "nan", "nan", "B", "truth", blue, *rest],
        ["1000003", "Which?", "", "green", "red", "blue", "", "B", "colour", red, *rest],
        ["1000004", '"Quoted\tquestion"', "A hint.", "no", "yes", "None", "", "A", "truth", blue, *rest],
        ["2000003", "Which?", "", "blue", "green", "red", "", "C", "colour", red, *rest],
    ]


def mmbench(folder: Path, rows: list[list[str]] | None = None) -> None:
    quoted = [MMBENCH_HEADER, *(mmbench_rows() if rows is None else rows)]
    cells = [['"' + cell.replace('"', '""') + '"' if "\t" in cell else cell for cell in row] for row in quoted]
    write(folder / "mmbench_dev_20230712.tsv", "".join("\t".join(row) + "\n" for row in cells))


WRITERS: dict[str, Callable[[Path], Any]] = {
    "vqav2": vqav2, "gqa": gqa, "sqa": sqa, "textvqa": textvqa, "textvqa-ocr": textvqa, "pope": pope, "mme": mme, "mmbench": mmbench,
}  # fmt: skip


def write_parquet(folder: Path, configs: dict[tuple[str, str], list[dict]]) -> None:
    """A dataset as on the hub: by configuration and split the rows, whose "image" is an encoded picture."""
    import datasets

    header = []
    for (config, split), rows in configs.items():
        data = datasets.Dataset.from_list(
            [{**row, "image": {"bytes": row["image"], "path": None}} if "image" in row else row for row in rows]
        )
        if "image" in data.column_names:
            data = data.cast_column("image", datasets.Image())
        path = f"{config}/{split}-00000-of-00001.parquet"
        (folder / config).mkdir(parents=True, exist_ok=True)
        data.to_parquet(str(folder / path))
        header.append(f"- config_name: {config}\n  data_files:\n  - split: {split}\n    path: {path}\n")
    write(folder / "README.md", f"---\nconfigs:\n{''.join(header)}---\n")


def parquet(name: str, folder: Path) -> None:
    red, blue = encoded(RED), encoded(BLUE)
    if name == "vqav2":
        record = {"question_type": "is the", "multiple_choice_answer": "yes", "answers": ten("yes", "no"), "image_id": 42, "answer_type": "yes/no"}  # fmt: skip
        rows = [{**record, "question_id": 42000 + i, "question": f"Is it {i}?", "image": red} for i in range(2)]
        write_parquet(folder, {("default", "validation"): rows})
    elif name == "gqa":
        types = {"detailed": "x", "semantic": "attr", "structural": "query"}
        rows = [{"id": "1", "imageId": "n2", "question": "What?", "answer": "red", "isBalanced": True, "types": types}]
        shown = [{"id": "n1", "image": blue}, {"id": "n2", "image": red}]
        write_parquet(folder, {("testdev_balanced_instructions", "testdev"): rows, ("testdev_balanced_images", "testdev"): shown})
    elif name == "sqa":
        row = {"image": red, "question": "What?", "choices": ["red", "blue"], "answer": 1, "hint": "", "grade": "grade4", "subject": "social science"}  # fmt: skip
        write_parquet(folder, {("ScienceQA-IMG", "test"): [row]})
    elif name == "textvqa":
        row = {
            "image": red,
            "image_id": "ab1",
            "question_id": 1,
            "question": "What?",
            "answers": ["x"] * 10,
            "ocr_tokens": ["A", "B"],
        }
        write_parquet(folder, {("default", "validation"): [row]})
    elif name == "pope":
        row = {
            "question_id": "1",
            "question": "Is there a cat in the image?",
            "answer": "yes",
            "image_source": "COCO_1",
            "image": red,
        }
        write_parquet(
            folder, {("default", "test"): [{**row, "category": split} for split in ("adversarial", "popular", "random")]}
        )
    elif name == "mme":
        row = {"question_id": "artwork/images/7.jpg", "image": red, "category": "artwork"}
        rows = [
            {**row, "question": f"Is it {c}? Please answer yes or no.", "answer": a} for c, a in (("red", "Yes"), ("blue", "No"))
        ]
        write_parquet(folder, {("default", "test"): rows})
    elif name == "mmbench":
        header = [name.replace("l2-", "L2-") for name in MMBENCH_HEADER]
        rows = [{**dict(zip(header, row, strict=True)), "index": int(row[0]), "image": red} for row in mmbench_rows()]
        write_parquet(folder, {("en", "dev"): rows})


def pope_rows(splits: Sequence[str]) -> list[dict[str, Any]]:
    """A row of POPE's parquet for each of these splits, about one red picture."""
    row = {"question_id": "1", "question": "Is it?", "answer": "no", "image_source": "COCO_1", "image": encoded(RED)}
    return [{**row, "category": split} for split in splits]
