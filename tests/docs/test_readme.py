"""What the README says can be done: its Python runs, its commands parse, its links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from tiny import inputs_for, make_llava, write_workspace
from transformers import AutoConfig, AutoProcessor

from evomoe import upcycle
from evomoe.cli import command_line as cli
from evomoe.recipe.recipe import Recipe

ROOT = Path(__file__).parents[2]
ANSWERS = ROOT / "docs" / "results" / "answers.md"  # a part of docs/results.md
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md")),
    *sorted({*(ROOT / "docs").rglob("*.md")} - {ANSWERS}),
]
WRITTEN = [ROOT / "docs" / name for name in ("results", "log", "paper-map.md")]
"""Pages whose lines a command writes, and the log, which stays as it was written."""


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
    assert AutoProcessor.from_pretrained(workspace / "sparse").chat_template


def test_the_python_of_the_quickstart_starts_from_a_recipe(tmp_path, monkeypatch):
    (code,) = blocks(ROOT / "docs" / "quickstart.md", "python")
    started = []
    monkeypatch.setattr("evomoe.training.run.run", lambda recipe: started.append(recipe))
    Recipe("m", "d", "runs/mine").save(tmp_path / "recipe.json")
    exec(code.replace("runs/mine/recipe.json", str(tmp_path / "recipe.json")), {})
    assert started == [Recipe("m", "d", "runs/again", seed=1)]


def test_the_python_of_the_concepts_records_what_is_generated(capsys):
    (code,) = blocks(ROOT / "docs" / "concepts.md", "python")
    model = upcycle(make_llava(), router="linear")
    exec(code, {"model": model, "inputs": inputs_for(model, (1,))})
    assert "'nmi': " in capsys.readouterr().out


def test_the_python_of_anyexperts_moves_the_budget(tmp_path):
    workspace = write_workspace(tmp_path)
    options = {"expert_init": "partition", "router": "anyexperts", "moe_layers": "all"}
    upcycle(make_llava(), num_experts=16, num_experts_per_tok=8, **options).save_pretrained(workspace / "sparse")
    AutoProcessor.from_pretrained(workspace / "model").save_pretrained(workspace / "sparse")
    (code,) = blocks(ROOT / "docs" / "anyexperts.md", "python")
    with Image.open(workspace / "images" / "0.png") as picture:
        scope = {"prompts": ["<image> what color is the shape ?", "is there a circle ?"], "pictures": [[picture], []]}
        exec(code.replace("out/trained/stage3_routing/model", str(workspace / "sparse")), scope)
    assert 5 < scope["mean"] < 7 and "budget" in scope["model"].config.moe.router_options


def test_the_message_that_the_quickstart_quotes_is_transformers(tmp_path):
    write_workspace(tmp_path)
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace('"model_type": "llava"', '"model_type": "no_such_type"'))
    (quoted,) = re.findall(r'^"(The checkpoint .*)"$', (ROOT / "docs" / "quickstart.md").read_text(), flags=re.M)
    with pytest.raises(ValueError, match=re.escape(quoted.replace("evomoe", "no_such_type"))):
        AutoConfig.from_pretrained(tmp_path / "model")


def commands(page: Path) -> list[str]:
    text = "\n".join(re.findall(r"^```\w*\n(.*?)^```", page.read_text(), flags=re.M | re.S)).replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip().startswith("evomoe ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_evomoe_command_on_a_page_is_one_that_the_command_line_takes(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for recipe in blocks(page, "yaml"):
        (tmp_path / "recipe.yaml").write_text(recipe)
    taken = []
    verbs = (
        "demo",
        "upcycle",
        "attach",
        "params",
        "compose",
        "export",
        "chat",
        "app",
        "look",
        "evaluate",
        "score",
        "table",
        "analyze",
        "plot",
        "list_names",
        "print_recipe",
        "doctor",
    )
    for verb in verbs:
        monkeypatch.setattr(cli, verb, _stand_in(getattr(cli, verb), taken))
    serve_with = cli.serve_with
    monkeypatch.setattr(cli, "serve_with", lambda own: _stand_in(serve_with(own), taken))
    monkeypatch.setattr("evomoe.cli.verbs.check_paths", lambda *args: None)  # the pages' files are examples
    monkeypatch.setattr("evomoe.training.run.run", lambda *args, **kwargs: taken.append("train"), raising=True)
    monkeypatch.setattr("evomoe.training.dry_run.describe", lambda *args: taken.append("train") or "")
    lines = [line for line in commands(page) if "..." not in line]
    for line in lines:
        assert cli.main(shlex.split(line, comments=True)[1:]) == 0, line
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


def test_the_readme_is_short_and_narrow():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 100] == []


def test_the_readme_names_every_verb():
    verbs = set(re.findall(r'^        "([a-z]+)": ', Path(cli.__file__).read_text(), flags=re.M))
    named = set(re.findall(r"`(?:evomoe )?([a-z]+)[ `]", (ROOT / "README.md").read_text()))
    assert len(verbs) > 15 and verbs <= named | {"demo"}, verbs - named


@pytest.mark.parametrize("page", [page for page in PAGES if not {page, page.parent} & {*WRITTEN}], ids=lambda page: page.name)
def test_no_line_of_prose_is_over_100_characters(page):
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    assert [line for line in prose.splitlines() if len(line) > 100 and not line.startswith(("|", "![", '"The checkpoint'))] == []
