"""VLMEvalKit's own run.py through examples/vlmevalkit_runner.py, on tables in its format.

EVOMOE_VLMEVALKIT names a clone of VLMEvalKit, EVOMOE_VLMEVALKIT_PYTHON an interpreter with what it needs, and evomoe.
"""

import base64
import csv
import io
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import make_llava, make_processor
from transformers import AutoModelForImageTextToText

from evomoe import upcycle
from evomoe.evaluation import Question
from evomoe.evaluation.benchmarks.letters import vlmevalkit_prompt
from evomoe.evaluation.benchmarks.mme import COGNITION, PERCEPTION
from evomoe.evaluation.generation import Answerer, Prompts, ask
from evomoe.evaluation.pictures import EncodedPicture

CLONE, PYTHON = os.environ.get("EVOMOE_VLMEVALKIT", ""), os.environ.get("EVOMOE_VLMEVALKIT_PYTHON", "")
WHY = "EVOMOE_VLMEVALKIT and EVOMOE_VLMEVALKIT_PYTHON name no clone of VLMEvalKit and no interpreter for it"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not (CLONE and PYTHON), reason=WHY)]

RUNNER = Path(__file__).parents[3] / "examples" / "vlmevalkit_runner.py"
# Runs a script and prints how many pictures its models have encoded.
COUNTED = """
import runpy, sys
from evomoe.evaluation import encode_once
made, init = [], encode_once.EncodeOnce.__init__
encode_once.EncodeOnce.__init__ = lambda self, *args: (made.append(self), init(self, *args))[1]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
print("encoded", [once.encoded for once in made])
"""
MAX_NEW_TOKENS = 12
COLOURS = ["red", "blue", "white"]
YES_OR_NO = ["is there a red circle ? Please answer yes or no.", "is there no circle ? Please answer yes or no."]
CHOICES = ["a red circle", "no triangle", "blue"]


def picture(colour: str) -> str:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def write_table(file: Path, rows: list[dict]) -> None:
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


Asked = dict[str, list[tuple[str, str, str]]]


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> tuple[Path, Asked]:
    """A folder with two tables, and their questions: index, colour of the picture, prompt."""
    folder = tmp_path_factory.mktemp("LMUData")
    asked: Asked = {"MME_tiny": [], "MMBench_tiny": []}
    mme, mmbench = [], []
    for pair, subtask in enumerate((*PERCEPTION, *COGNITION)):
        colour = COLOURS[pair % 3]
        for text, answer in zip(YES_OR_NO, ["Yes", "No"], strict=True):
            row = {"index": len(mme), "category": subtask, "question": text, "answer": answer, "image_path": f"{subtask}.png"}
            asked["MME_tiny"].append((str(len(mme)), colour, text))
            mme.append({**row, "image": picture(colour)})
    for turn in range(3):  # the rotations of all questions follow all questions, and name the row that holds their picture
        for number, colour in enumerate(COLOURS, start=1):
            index, choices = turn * 1_000_000 + number, CHOICES[turn:] + CHOICES[:turn]
            row = {
                "index": index,
                "question": "what is this ?",
                "hint": "one shape" if number == 2 else "",
                "answer": "ACB"[turn],
            }
            row |= dict(zip("ABC", choices, strict=True)) | {"category": "shape", "l2-category": "all", "split": "dev"}
            mmbench.append({**row, "image": str(number) if turn else picture(colour)})
            asked["MMBench_tiny"].append((str(index), colour, vlmevalkit_prompt(row["question"], row["hint"], choices)))
    write_table(folder / "MME_tiny.tsv", mme)
    write_table(folder / "MMBench_tiny.tsv", mmbench)
    return folder, asked


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_its_benchmarks_get_the_answers_that_the_model_gives(tables, tmp_path, kind):
    folder, asked = tables
    torch.manual_seed(3)
    model = make_llava().eval()
    for parameter in model.parameters():
        parameter.data.mul_(4)
    if kind == "sparse":
        model = upcycle(model, expert_init="noise", init_options={"std": 0.3}, num_experts_per_tok=2)
    model.save_pretrained(tmp_path / "model")
    make_processor().save_pretrained(tmp_path / "model")

    # Tables of these names have no checksum and are looked for nowhere else.
    classes = {"MME_tiny": "ImageYORNDataset", "MMBench_tiny": "ImageMCQDataset"}
    config = json.dumps({name: {"class": kind, "dataset": name} for name, kind in classes.items()})
    environment = {**os.environ, "LMUData": str(folder), "PRED_FORMAT": "tsv", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    result = subprocess.run(
        [
            PYTHON, "-c", COUNTED, RUNNER, "--vlmevalkit", CLONE, "--pretrained", tmp_path / "model", "--device", "cpu",
            "--max-new-tokens", str(MAX_NEW_TOKENS), "--", "--data", *asked, "--data-config", config,
            "--judge", "exact_matching", "--work-dir", tmp_path / "out",
        ],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"encoded [{len(COLOURS)}]" in result.stdout  # of 37 questions

    loaded, processor = AutoModelForImageTextToText.from_pretrained(tmp_path / "model").eval(), make_processor()
    for name, questions in asked.items():
        expected = {}
        for index, colour, text in questions:
            one = ask(Question(index, text, EncodedPicture(picture(colour), colour)))
            ((expected[index],),) = (
                given.values() for given in Answerer(loaded, MAX_NEW_TOKENS).answer(Prompts([one], processor))
            )
        (file,) = (tmp_path / "out" / "evomoe").glob(f"T*/evomoe_{name}.tsv")
        with file.open(encoding="utf-8", newline="") as rows:
            given = {row["index"]: row["prediction"] for row in csv.DictReader(rows, delimiter="\t")}
        assert given == expected and len(set(expected.values())) > 2
    (status,) = (tmp_path / "out" / "evomoe").glob("T*/status.json")
    metrics = {name: data.get("metrics", data) for name, data in json.loads(status.read_text())["datasets"].items()}
    assert {"perception", "reasoning"} <= set(metrics["MME_tiny"]) and "split=dev|Overall" in metrics["MMBench_tiny"]
