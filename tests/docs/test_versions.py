"""What the project's own files promise: versions that are tested, and hooks that run the linters."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def test_the_oldest_environment_is_made_of_the_lower_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = [*project["dependencies"], *project["optional-dependencies"]["plots"]]
    bounds = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", entry).groups() for entry in promised)
    pins = dict(line.split("==") for line in (ROOT / "constraints-oldest.txt").read_text().splitlines() if "==" in line)

    def release(version: str) -> list[int]:
        return [int(part) for part in version.split(".")] + [0] * (3 - version.count(".") - 1)

    assert {name: release(pins[name]) for name in bounds} == {name: release(bound) for name, bound in bounds.items()}


def test_the_tested_versions_are_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = {re.match(r"[\w-]+", entry).group() for entry in project["dependencies"]}
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert promised <= pinned


def test_the_hooks_run_what_make_lint_runs():
    rule = (ROOT / "Makefile").read_text().partition("\nlint: $(READY)\n")[2].partition("\n\n")[0]
    commands = [line.strip().removeprefix("@").replace("$(BIN)", ".venv/bin") for line in rule.splitlines()]
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert commands and [hook["entry"] for hook in local["hooks"]] == commands
    assert all(hook["language"] == "system" and not hook["pass_filenames"] for hook in local["hooks"])
