"""A picture whose damage shows only when it is decoded: named under any number of workers, and no step is lost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from small_runs import make_recipe
from tiny.workspace import make_records

from evomoe.data.records import BadRecordError
from evomoe.recipe.recipe import Recipe
from evomoe.support.errors import OptionError
from evomoe.training.dry_run import describe
from evomoe.training.run import run


@pytest.fixture
def damaged(workspace) -> Path:
    """Of 24 records one has a picture that is whole by its format, with other bytes among its pixels."""
    Image.linear_gradient("L").resize((16, 16)).save(workspace / "images" / "cut.tiff", compression="tiff_adobe_deflate")
    with Image.open(workspace / "images" / "cut.tiff") as picture:
        start, length = picture.tag_v2[273][0], picture.tag_v2[279][0]  # of its one strip
    content = bytearray((workspace / "images" / "cut.tiff").read_bytes())
    content[start : start + length] = bytes(length)
    (workspace / "images" / "cut.tiff").write_bytes(content)
    records = make_records()
    records[17] |= {"image": "cut.tiff"}
    (workspace / "data.json").write_text(json.dumps(records))
    return workspace


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_record_is_named_and_the_run_goes_on_without_it(damaged, workers):
    recipe = make_recipe(damaged, stages=(1,), steps=6, workers=workers, trainer={"save_steps": 100})
    with pytest.raises(BadRecordError) as caught:
        run(recipe)
    said = str(caught.value)
    assert said.startswith("data.json, record 17 (id '17'): image ") and "cut.tiff cannot be decoded: " in said
    assert "Traceback" not in said and "\n" not in said and "`on_bad_record=skip`" in said
    saved = [int(folder.name.rpartition("-")[2]) for folder in (damaged / "run").glob("stage1_warmup/checkpoints/checkpoint-*")]
    assert ("are saved: `resume`" in said or "is saved: `resume`" in said) == bool(saved)
    skipping = recipe.but(on_bad_record="skip")
    if saved:
        with pytest.raises(OptionError, match="Add `resume=True`"):
            run(skipping)
    model = run(skipping, resume=bool(saved))
    assert model.is_dir()
    if saved:
        (line,) = (damaged / "run" / "changes.txt").read_text().splitlines()
        assert line == f"From step {max(saved)} of stage 1 on: on_bad_record: 'stop' -> 'skip'."
    assert Recipe.load(damaged / "run").on_bad_record == "skip"


def test_decoding_all_finds_it_before_training(damaged):
    with pytest.raises(BadRecordError, match=r"record 17 \(id '17'\): image .*cut.tiff cannot be decoded"):
        describe(make_recipe(damaged, check_pictures="decode"))
    assert "23 records" in describe(make_recipe(damaged, check_pictures="decode", on_bad_record="skip"))


def test_the_command_line_says_one_sentence(damaged):
    command = [
        *(sys.executable, "-m", "evomoe.cli", "train", "--model", damaged / "model", "--data", damaged / "data.json"),
        *("--image-root", damaged / "images", "--output", damaged / "run", "--stages", "1", "--workers", "2"),
        *("--stage1.batch-size", "2", "--stage1.accumulation", "1", "--stage1.steps", "12"),
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (last,) = (line for line in done.stderr.splitlines() if line.startswith("evomoe: "))
    assert (
        last.startswith("evomoe: data.json, record 17 (id '17'): image ")
        and "--check-pictures decode" in last
        and "--resume" in last
    )
