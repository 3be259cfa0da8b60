"""What works where torch cannot be imported: recipes, scoring, lists, tables as data, and the command line before a verb needs more."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from evaluation.official_files import WRITERS

import evomoe

PACKAGE = Path(evomoe.__file__).parent

NEED_TORCH = {
    "support": {"device"},
    "recipe": set(),
    "cli": {"__main__"},  # which is the command line itself: importing it runs a verb
    "evaluation": {"checkpoint_evaluation", "encode_once", "generation", "prepared", "processes"},
    "evaluation/benchmarks": set(),
    "paper/tables": set(),
}
"""The folders of which every file is imported, but for these files."""

SINGLE_FILES = ("analysis.probe_options", "paper.figures.figure_options")
"""Files that do without torch in folders that need it."""

WITHOUT_TORCH = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "datasets", "accelerate"):
            raise ModuleNotFoundError(f"{name} is not here", name=name)

sys.meta_path.insert(0, Missing())
"""

IMPORT_EACH = """
import importlib, json
failed = {}
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed[name] = str(error)
print(json.dumps(failed))
"""


def run_without_torch(code: str, *arguments: str) -> str:
    """What the code prints in a process of its own."""
    command = [sys.executable, "-c", WITHOUT_TORCH + code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules_in(folder: str) -> set[str]:
    """The names, without their folder's, of the modules that lie in a folder."""
    names = {file.stem for file in (PACKAGE / folder).glob("*.py")}
    assert names, f"there is no {folder}"
    return names


def full_name(folder: str, module: str) -> str:
    package = f"evomoe.{folder.replace('/', '.')}"
    return package if module == "__init__" else f"{package}.{module}"


def test_every_module_that_promises_it_is_imported():
    names = [full_name(folder, name) for folder, needing in NEED_TORCH.items() for name in sorted(modules_in(folder) - needing)]
    names += [f"evomoe.{name}" for name in SINGLE_FILES]
    assert json.loads(run_without_torch(IMPORT_EACH, json.dumps(names))) == {}


def test_the_exceptions_are_files_that_do_need_torch():
    names = [full_name(folder, name) for folder, needing in NEED_TORCH.items() for name in needing - {"__main__"}]
    assert json.loads(run_without_torch(IMPORT_EACH, json.dumps(names))).keys() == set(names)


def test_scoring_the_answers_of_another_program(tmp_path):
    WRITERS["pope"](tmp_path / "pope")
    answers = [{"question_id": f"{split}/{n}", "text": "yes"} for split in ("random", "popular", "adversarial") for n in (1, 2)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    printed = run_without_torch(
        "from evomoe.cli import main\nsys.exit(main(sys.argv[1:]))",
        *("score", "pope", "--predictions", str(tmp_path / "answers.jsonl"), "--annotations", str(tmp_path / "pope")),
        "--any-version",
    )
    assert "| pope " in printed and "| 6 |" in " ".join(printed.split())


@pytest.mark.parametrize(("what", "row"), [("recipes", "moe-llava"), ("benchmarks", "pope"), ("tables", "2 ")])
def test_lists(what, row):
    printed = run_without_torch("from evomoe.cli import main\nsys.exit(main(sys.argv[1:]))", "list", what)
    assert any(line.startswith(row) for line in printed.splitlines()), printed


def test_a_recipe_is_made_checked_and_read_again(tmp_path):
    code = """
import evomoe
evomoe.Recipe("model", "data.json", "run", seed=3).save(sys.argv[1])
print(evomoe.Recipe.load(sys.argv[1]).seed, *evomoe.RECIPES)
"""
    assert run_without_torch(code, str(tmp_path / "recipe.json")).split()[:2] == ["3", "evomoe"]
