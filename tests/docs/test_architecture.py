"""The page on the architecture tells of the folders, the layers and the files that there are; its pictures are up to date."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

from evomoe.recipe.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
PACKAGE, PAGE = ROOT / "src" / "evomoe", ROOT / "docs" / "architecture.md"
TREE, LAYERS, INSIDE = re.findall(r"^```\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)

matplotlib = pytest.importorskip("matplotlib")
_SPEC = importlib.util.spec_from_file_location("draw_architecture", ROOT / "docs" / "draw_architecture.py")
draw_architecture = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(draw_architecture)


def paths_of(tree: str) -> list[str]:
    """The paths below src/evomoe that an indented tree names; folders end with a slash."""
    head, *lines = tree.splitlines()
    assert head == "src/evomoe/"
    above: list[str] = []
    paths = []
    for line in lines:
        name, told = re.fullmatch(r" +(\S+) *(.*)", line).groups()
        depth = (len(line) - len(line.lstrip())) // 2
        above = [*above[: depth - 1], name]
        paths.append("".join(above))
        assert told or name == "__init__.py", f"{line}: what is it?"
    return paths


def test_the_tree_is_that_of_the_folders():
    named = paths_of(TREE)
    files = [file.relative_to(PACKAGE) for file in PACKAGE.rglob("*.py")]
    folders = {f"{file.parent}/" for file in files if file.parent != Path(".")}
    wanted = folders | {str(file) for file in files if file.parent == Path(".") or file.parts[0] == "model"}
    assert len(set(named)) == len(named) and set(named) == wanted


def layers_of(container: str) -> list[str]:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract.get("containers") == [container])
    return layers


def test_the_layers_are_those_that_the_linter_checks():
    assert LAYERS.splitlines() == layers_of("evomoe")
    assert INSIDE.splitlines() == layers_of("evomoe.model")


def test_every_room_has_a_layer():
    rooms = {f"{name}/" for layer in LAYERS.splitlines() for name in layer.split(" | ")}
    assert rooms == {path for path in paths_of(TREE) if path.count("/") == 1 and path.endswith("/")}


@pytest.mark.parametrize("name", draw_architecture.PICTURES)
def test_a_picture_is_on_a_page_and_names_files_that_exist(name):
    assert any(f"](architecture/{name}.svg)" in page.read_text(encoding="utf-8") for page in PAGE.parent.glob("*.md"))
    words = re.findall(r"<!-- (.*) -->", (draw_architecture.FOLDER / f"{name}.svg").read_text())  # matplotlib's, of its letters
    files = [word for word in words if "/" in word and word.endswith((".py", "/")) and (PACKAGE / word.split("/")[0]).is_dir()]
    assert len(files) >= 6
    for file in files:
        assert (PACKAGE / file).exists(), file


@pytest.mark.parametrize("name", draw_architecture.PICTURES)
def test_a_picture_is_what_the_script_draws(name, tmp_path):
    pinned = re.search(r"^matplotlib==(.*)$", (ROOT / "constraints.txt").read_text(), flags=re.M)[1]
    if matplotlib.__version__ != pinned:
        pytest.skip(f"the pictures were drawn with matplotlib {pinned}, which other versions do in other numbers")
    draw_architecture.PICTURES[name]().save(tmp_path / "drawn.svg")
    assert (tmp_path / "drawn.svg").read_text() == (draw_architecture.FOLDER / f"{name}.svg").read_text(), "run `make docs`"


def test_the_walk_of_a_run_names_what_a_run_leaves():
    run, words = RunFolder(""), re.findall(r"<!-- (.*) -->", (draw_architecture.FOLDER / "run.svg").read_text())
    folders = [f"{run.stage(stage).path}/" for stage in (1, 2, 3)]
    files = [run.recipe, run.metrics, run.report, run.stage(2).experts, run.stage(2).diversity]
    assert {*folders, *(file.name for file in files), f"{run.stage(3).model.name}/"} <= set(words)
