"""What the README says can be done: its Python runs, its commands parse, its links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest
from tiny import write_workspace

from evomoe import cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.M | re.S)


def test_the_five_lines_of_python_run(tmp_path, monkeypatch):
    workspace = write_workspace(tmp_path)
    (code,) = blocks(ROOT / "README.md", "python")
    code = code.replace("path/to/dense", str(workspace / "model")).replace("path/to/sparse", str(workspace / "sparse"))
    scope: dict = {}
    exec(code, scope)
    assert type(scope["model"]).__name__ == "EvoMoELlavaForConditionalGeneration"
    assert scope["model"].config.moe.num_experts == 4


def commands(page: Path) -> list[str]:
    text = "\n".join(re.findall(r"^```\w*\n(.*?)^```", page.read_text(), flags=re.M | re.S)).replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip().startswith("evomoe ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_evomoe_command_on_a_page_is_one_that_the_command_line_takes(page, monkeypatch):
    taken = []
    for verb in ("demo", "upcycle", "params", "compose", "evaluate", "list_names"):
        monkeypatch.setattr(cli, verb, _stand_in(getattr(cli, verb), taken))
    monkeypatch.setattr("evomoe.stages.run", lambda *args, **kwargs: taken.append("train"), raising=True)
    monkeypatch.setattr("evomoe.stages.dry_run.describe", lambda recipe, resume: taken.append("train") or "")
    lines = [line for line in commands(page) if "..." not in line]
    for line in lines:
        assert cli.main(shlex.split(line)[1:]) == 0, line
    assert len(taken) == len(lines)


def _stand_in(function, taken):
    import functools

    @functools.wraps(function)
    def stand_in(*args, **kwargs):
        taken.append(function.__name__)

    return stand_in


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_make_target_named_in_the_readme_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"`?make ([\w-]+)`?", (ROOT / "README.md").read_text())) <= targets
