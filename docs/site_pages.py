"""What ``make docs-site`` adds to the pages: the README as the first one, the parser's help, the public names, links into the code."""

import logging
import posixpath
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import evomoe

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FROM_ROOT = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
"""Files outside of docs that are pages, and what the pages are called."""
CLASSES = (
    "evomoe.recipe.options.MoEOptions",
    "evomoe.recipe.options.EvolutionOptions",
    "evomoe.recipe.options.StageOptions",
    "evomoe.evaluation.evaluation_options.EvaluationOptions",
    "evomoe.analysis.probe_options.ProbeOptions",
)
"""Classes of arguments, which docs/api.md promises too."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """A pattern in the navigation, such as ``results/table*.md``, stands for the pages that it finds."""
    config.nav = _without_patterns(config.nav)
    return config


def _without_patterns(nav: Any) -> Any:
    if isinstance(nav, list):
        return [_without_patterns(part) for part in nav]
    if isinstance(nav, dict):
        return {title: _without_patterns(part) for title, part in nav.items()}
    return [path.relative_to(DOCS).as_posix() for path in _in_order(DOCS.glob(nav))] if "*" in nav else nav


def _in_order(paths: Iterable[Path]) -> list[Path]:
    """Numbered tables by their numbers, days from the newest on, the rest by name."""
    by_name = sorted(paths, key=lambda path: path.name)
    if all(re.fullmatch(r"\d{4}-\d\d-\d\d", path.stem) for path in by_name):
        return by_name[::-1]
    return sorted(by_name, key=lambda path: int(re.sub(r"\D", "", path.stem) or 1000))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, page in FROM_ROOT.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    surface = (ROOT / "tests" / "cli" / "cli_surface.txt").read_text(encoding="utf-8")
    files.append(File.generated(config, "commands.md", content=_commands(surface)))
    names = [
        f"evomoe.{name}" for name in evomoe.__all__ if not name.isupper() and not name.startswith("_")
    ]  # the rest are tables
    text = "# Every argument\n\n" + "\n\n".join(f"::: {name}" for name in (*names, *CLASSES)) + "\n"
    files.append(File.generated(config, "reference.md", content=text))
    return files


def on_page_markdown(markdown: str, page, config: MkDocsConfig, files: Files) -> str:
    """Links to files that are no pages become their names: the site stands without the repository. Blocks of code lose the
    name of their file, which the site's Markdown does not know."""
    folder = posixpath.dirname(page.file.src_uri)
    where = "" if page.file.src_uri in FROM_ROOT.values() else posixpath.join("docs", folder)

    def link(found: re.Match[str]) -> str:
        text, target, anchor = found["text"], found["target"], found["anchor"] or ""
        path = posixpath.normpath(posixpath.join(where, target))
        inside = FROM_ROOT.get(path, path.removeprefix("docs/") if path.startswith("docs/") else "")
        if inside and files.get_file_from_path(inside):
            return f"{found['mark']}[{text}]({posixpath.relpath(inside, folder or '.')}{anchor})"
        return text if text.startswith("`") else f"{text} (`{path}`)"

    markdown = re.sub(r"^(```\w+) \S+$", r"\1", markdown, flags=re.M)
    return re.sub(r"(?P<mark>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)", link, markdown)


def on_page_content(html: str, page, config: MkDocsConfig, files: Files) -> str:
    """Warns, which ends a strict build, of a block of code that the site shows as prose."""
    if "```" in re.sub(r"<(code|pre)\b.*?</\1>", "", html, flags=re.S):
        logging.getLogger("mkdocs.hooks").warning("%s: a block of code is not read as one", page.file.src_uri)
    return html


def _commands(surface: str) -> str:
    """The snapshot of the command line, a section for each verb."""
    parts = re.split(r"^(evomoe(?: \w+)?)\n(?=usage)", surface, flags=re.M)
    sections = [f"## {name}\n\n```text\n{text.strip()}\n```" for name, text in zip(parts[1::2], parts[2::2], strict=True)]
    return "# The command line\n\n" + "\n\n".join(sections) + "\n"
