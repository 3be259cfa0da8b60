"""The tutorial: its commands run, in small in this process, and as they stand in a shell; its recipe is one."""

import importlib.util
import json
import re
import runpy
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

from evomoe.cli import main
from evomoe.paper.study import base_model

ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("draw_tutorial", ROOT / "docs" / "draw_tutorial.py")
draw_tutorial = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(draw_tutorial)
PAGE = draw_tutorial.PAGE.read_text(encoding="utf-8")
SMALLER = {"--fraction 0.1": "--fraction 0.004", "steps: 100,": "steps: 2,", "steps: 50,": "steps: 2,"}


def in_this_process(line: str, monkeypatch) -> None:
    """What a line of the page does, without a shell."""
    program, *arguments = shlex.split(line)
    if program == "evomoe":
        assert main(arguments) == 0, line
    elif program == "cp":
        assert re.fullmatch(r'cp -r "\$\(python -c \'[^\']*base_model import ensure; print\(ensure\(\)\)\'\)" dense', line)
        shutil.copytree(base_model.ensure(), "dense")
    else:
        assert [program, *arguments[:2]] == ["python", "-m", "evomoe.mini"], line
        monkeypatch.setattr(sys, "argv", arguments[1:])
        runpy.run_module(arguments[1], run_name="__main__")


def check(folder: Path) -> None:
    """What the page says is there."""
    for run in ("first", "second"):
        assert json.loads((folder / run / "stage3_routing" / "model" / "config.json").read_text())["model_type"] == "evomoe"
    assert all((folder / drawn).is_file() for drawn in draw_tutorial.DRAWN)
    assert "What shape is the red object?" in (folder / draw_tutorial.LOOK).read_text(encoding="utf-8")
    assert json.loads((folder / "one-expert" / "config.json").read_text())["model_type"] == "llava"
    assert {file.parent.name for file in (folder / "scores").rglob("result-*.json")} == {"mini-vqav2", "mini-pope"}


def test_the_commands_run_in_small(tmp_path, monkeypatch, capsys):
    page = PAGE
    for usual, smaller in SMALLER.items():
        assert usual in page
        page = page.replace(usual, smaller)
    monkeypatch.chdir(tmp_path)
    for language, text in draw_tutorial.blocks(page):
        if language == "yaml":
            (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
        for line in text.replace("\\\n", " ").splitlines() if language == "bash" else ():
            in_this_process(line, monkeypatch)
    check(tmp_path)


@pytest.mark.slow
def test_the_commands_run_in_a_shell_and_print_what_the_page_says(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PATH", sysconfig.get_path("scripts"), prepend=":")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    draw_tutorial.run(PAGE, tmp_path)
    check(tmp_path)
    printed = capfd.readouterr().out
    (dry_run,) = re.findall(r"^```\n(Stage 2 \(evolution\).*?)```", PAGE, flags=re.M | re.S)
    assert dry_run in printed and "\ngreen\n" in printed
    records = json.loads((tmp_path / "world" / "train" / "stage2.json").read_text())
    assert records[0]["id"] == "stage2-000000" and "Is there a yellow bar in the image?" in PAGE
    assert records[0]["conversations"][0]["value"].startswith("<image>\nIs there a yellow bar in the image?")
    models = json.loads((tmp_path / "pictures" / "figure_5.json").read_text())["models"]
    assert models["first"]["mean"]["effective_experts"] < 2 < 3 < models["second"]["mean"]["effective_experts"]


def test_every_picture_of_the_page_is_there():
    pictures = re.findall(r"!\[[^\]]+\]\((tutorial/[^)]+)\)", PAGE)
    assert {Path(picture).name for picture in pictures} == {*draw_tutorial.DRAWN.values(), "look.webp"}
    assert all((ROOT / "docs" / picture).is_file() for picture in pictures)
