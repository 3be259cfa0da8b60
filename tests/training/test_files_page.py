"""docs/files.md names every file that a run leaves and every field that it logs."""

import json
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from small_runs import make_recipe

from evomoe.recipe.options import MoEOptions
from evomoe.recipe.run_folder import RunFolder
from evomoe.training.run import run

PAGE = (Path(__file__).parents[2] / "docs" / "files.md").read_text()
FIELDS = [
    name
    for cells in re.findall(r"^\| (`.*?`) \|", PAGE.partition("## metrics.jsonl")[2], flags=re.M)
    for name in re.findall(r"`(.+?)`", cells)
]
FILES = [
    name
    for cells in re.findall(r"^\| (`.*?`) \|", PAGE.partition("## metrics.jsonl")[0], flags=re.M)
    for name in re.findall(r"`(.+?)`", cells)
]


@pytest.mark.parametrize(
    "moe",
    [MoEOptions(router_options={"hypernet_width": 4, "rank": 2}), MoEOptions(router="anyexperts", num_experts_per_tok=2)],
    ids=["dtr", "anyexperts"],
)
def test_the_page_names_what_a_run_leaves(workspace, moe):
    run(make_recipe(workspace, stages=(0, 1, 2, 3)).but(moe=moe))
    folder = workspace / "run"
    patterns = {
        re.sub(r"expertN|virtualN|NAME", lambda found: {"NAME": "*"}.get(found[0], found[0][:-1] + "[0-9]"), field)
        for field in FIELDS
    }
    logged = {name for line in (folder / "metrics.jsonl").read_text().splitlines() for name in json.loads(line)}
    unnamed = {name for name in logged if not any(fnmatch(name, pattern) for pattern in patterns | {"stage", "step", "epoch"})}
    assert not unnamed
    left = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} - {".lock"}
    named = [*FILES, *re.findall(r"`(\w+\.png)`", PAGE)]
    assert not {
        name for name in left if not any(fnmatch(name, f"{pattern}*" if pattern.endswith("/") else pattern) for pattern in named)
    }


def test_the_page_names_the_files_that_only_some_runs_have(tmp_path):
    """As a run's folder knows them; stages are folders of their own."""
    folder = RunFolder(tmp_path)
    own = {getattr(folder, name) for name, value in vars(RunFolder).items() if isinstance(value, property)}
    assert len(own) > 5 and {path.name for path in own if isinstance(path, Path) and path != folder.path} - {".lock"} <= {*FILES}


def test_the_page_names_no_field_that_is_not_there():
    source = "".join(file.read_text() for file in (Path(__file__).parents[2] / "src" / "evomoe" / "training").rglob("*.py"))
    own = [field for field in FIELDS if re.match(r"(distance|aux|load|experts|effective)", field)]
    assert len(own) > 6 and all(re.split(r"/|expertN", field)[0] in source for field in own)
