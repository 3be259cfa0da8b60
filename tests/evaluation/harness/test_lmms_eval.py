"""lmms-eval's own command on its stock tasks, with stand-in data of the same columns.

It needs an environment of its own: `make test-harnesses` makes it and names its interpreter in EVOMOE_LMMS_EVAL.
"""

import base64
import io
import json
import os
import subprocess
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image
from tiny import make_llava, make_processor
from transformers import AutoModelForImageTextToText

from evomoe import upcycle
from evomoe.data.prompts import SHORT_ANSWER
from evomoe.evaluation import Question
from evomoe.evaluation.generation import Answerer, Prompts, ask
from evomoe.evaluation.pictures import EncodedPicture

PYTHON = os.environ.get("EVOMOE_LMMS_EVAL", "")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON, reason="EVOMOE_LMMS_EVAL names no interpreter with lmms-eval")]

TEXTS = [
    "is there a red circle ?",
    "is the shape blue ?",
    "what color is the shape ?",
    "no ?",
    "is there not a triangle ? yes or no ?",
]


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(file, "PNG")
    return file.getvalue()


PICTURES = [png(colour) for colour in ("red", "blue", "white")]


def write_dataset(folder: Path, config: str, split: str, rows: list[dict]) -> None:
    """A hub dataset's folder, as `datasets.load_dataset` finds it below the working directory."""
    data = datasets.Dataset.from_list([{**row, "image": {"bytes": row["image"], "path": None}} for row in rows])
    (folder / config).mkdir(parents=True)
    data.cast_column("image", datasets.Image()).to_parquet(str(folder / config / f"{split}-00000.parquet"))
    files = f"- config_name: {config}\n  data_files:\n  - split: {split}\n    path: {config}/{split}-00000.parquet\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n{files}---\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A working directory with data, a dense and a sparse model."""
    folder = tmp_path_factory.mktemp("place")
    pope = [
        {
            "id": str(i), "question_id": str(i), "question": text, "answer": "yes", "image_source": f"p{i % 3}",
            "image": PICTURES[i % 3], "category": "random",
        }
        for i, text in enumerate(TEXTS)
    ]  # fmt: skip
    write_dataset(folder / "lmms-lab-encoder" / "POPE", "default", "test", pope)
    mme = [
        {"question_id": f"{i // 2}.png", "question": text, "answer": answer, "category": "color", "image": PICTURES[i // 2]}
        for i, (text, answer) in enumerate(zip(TEXTS[:4], ["Yes", "No"] * 2, strict=True))
    ]
    write_dataset(folder / "lmms-lab-encoder" / "MME", "default", "test", mme)
    torch.manual_seed(3)
    dense = make_llava().eval()
    for parameter in dense.parameters():
        parameter.data.mul_(4)
    sparse = upcycle(dense, expert_init="noise", init_options={"std": 0.3}, num_experts_per_tok=2)
    for name, model in (("dense", dense), ("sparse", sparse)):
        model.save_pretrained(folder / name)
        make_processor().save_pretrained(folder / name)
    return folder


def lmms_eval(place: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(place / "home"),
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("PYTHONPATH", None)
    command = [
        PYTHON,
        "-m",
        "lmms_eval",
        "--model",
        "evomoe",
        "--device",
        "cpu",
        "--log_samples",
        "--verbosity",
        "DEBUG",
        *arguments,
    ]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)


def answers(folder: Path, task: str) -> list[str]:
    (file,) = folder.rglob(f"*samples_{task}.jsonl")
    rows = sorted((json.loads(line) for line in file.read_text().splitlines()), key=lambda row: row["doc_id"])
    return [row["filtered_resps"] for row in rows]


@pytest.mark.parametrize(
    ("model", "batch_size", "more"),
    [("sparse", 1, ()), ("sparse", 3, ()), ("sparse", 3, ("--force_simple",)), ("dense", 3, ())],
    ids=lambda value: str(value),
)
def test_stock_tasks_get_the_answers_that_the_model_gives(place, tmp_path, model, batch_size, more):
    result = lmms_eval(
        place, "--model_args", f"pretrained={place / model}", "--tasks", "pope,mme", "--batch_size", str(batch_size),
        "--output_path", str(tmp_path), *more,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    loaded, processor = AutoModelForImageTextToText.from_pretrained(place / model).eval(), make_processor()
    expected = []
    for i, text in enumerate(TEXTS):
        picture = EncodedPicture(base64.b64encode(PICTURES[i % 3]).decode(), str(i % 3))
        asked = ask(Question(str(i), text, picture), text + SHORT_ANSWER)
        (given,) = Answerer(loaded, 128).answer(Prompts([asked], processor), label=None)
        expected.append(given[0].split("\n\n")[0])
    assert answers(tmp_path, "pope") == expected and len(set(expected)) > 2
    assert len(answers(tmp_path, "mme")) == 4 and "mme_perception_score" in result.stdout


def test_an_error_is_raised_and_no_empty_answer_given(place, tmp_path):
    (tmp_path / "lmms-lab-encoder").mkdir()
    row = {"id": "0", "question_id": "0", "answer": "yes", "image_source": "p", "image": PICTURES[0], "category": "random"}
    rows = [{**row, "question": "is there a red circle ?"}, {**row, "question": "is <image> red ?"}]
    write_dataset(tmp_path / "lmms-lab-encoder" / "POPE", "default", "test", rows)
    result = lmms_eval(
        tmp_path,
        "--model_args",
        f"pretrained={place / 'sparse'}",
        "--tasks",
        "pope",
        "--batch_size",
        "2",
        "--output_path",
        str(tmp_path),
    )
    assert result.returncode != 0 and "pope, test, document 1" in result.stdout + result.stderr


def test_an_unknown_argument_is_refused(place, tmp_path):
    unknown = f"pretrained={place / 'sparse'},temprature=1"
    result = lmms_eval(place, "--model_args", unknown, "--tasks", "pope", "--output_path", str(tmp_path))
    assert result.returncode != 0 and "temprature" in result.stdout + result.stderr
