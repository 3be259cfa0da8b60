"""The versions that are promised are the versions that are tested."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_oldest_environment_is_made_of_the_lower_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = [*project["dependencies"], *project["optional-dependencies"]["plots"]]
    bounds = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", entry).groups() for entry in promised)
    pins = dict(line.split("==") for line in (ROOT / "constraints-oldest.txt").read_text().splitlines() if "==" in line)

    def release(version: str) -> list[int]:
        return [int(part) for part in version.split(".")] + [0] * (3 - version.count(".") - 1)

    assert {name: release(pins[name]) for name in bounds} == {name: release(bound) for name, bound in bounds.items()}
