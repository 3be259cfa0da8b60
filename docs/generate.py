"""Writes the pages of docs that are made of other files.

docs/paper-map.md from the ``Implements:`` lines of the modules; docs/results.md and a page a table in docs/results from the
numbers there; docs/log.md, the table of contents of docs/log. Run it with ``make docs``.
"""

import ast
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evomoe.paper.tables.table import Table

ROOT = Path(__file__).parents[1]
DOCS, SOURCE = ROOT / "docs", ROOT / "src" / "evomoe"

ITEMS = {
    "Section 1": "the two challenges: uniform experts, rigid routers",
    "Section 3.1": "the three stages",
    "Eq. 1": "expert evolution",
    "Eq. 2": "image and text tokens enter the decoder",
    "Eq. 3": "attention block",
    "Eq. 4": "MoE layer in place of the FFN",
    "Eq. 5": "a hypernetwork writes parameters for a token",
    "Eq. 6": "one hypernetwork per modality, down and up projection",
    "Eq. 7": "the token through its own small network",
    "Eq. 8": "probabilities of the experts",
    "Eq. 9": "language loss plus weighted auxiliary loss",
    "Eq. 10": "Eq. 9 again, in the supplement",
    "Eq. 11": "language loss",
    "Eq. 12": "balance loss",
    "Table 1": "comparison with other models",
    "Table 2": "evolution and DTR, each alone and together",
    "Table 3": "each evolved expert alone",
    "Table 4": "designs of the router",
    "Table 5": "ways to make experts diverse",
    "Table 6": "placement, shared expert, trainable parameters",
    "Table 7": "settings of the stages",
    "Table 8": "architectures and parameter counts",
    "Table 9": "sizes of the language model",
    "Table 10": "eight shuffled routers",
    "Table 11": "experts per token",
    "Table 12": "number of experts",
    "Table 13": "epochs",
    "Table 14": "sizes of noise and of expert dropout",
    "Table 15": "values of beta",
    "Figure 1": "scores under shuffled routers (a), router logits by modality (b)",
    "Figure 2": "the three stages",
    "Figure 3": "the Dynamic Token-aware Router",
    "Figure 4": "designs of the router",
    "Figure 5": "load of each expert by modality",
}
"""What the paper has, in this project's words; Figure 6 shows examples of answers only."""

_CLAIM = re.compile(r"((?:Eq\.|Table|Figure|Section) [\d.]*\d)(?: \(([^()]+)\))?")

HEADER = """# Paper map

Which file implements which part of the paper (EvoMoE, arXiv 2505.23830). Written by `make docs` from the line
`Implements:` at the top of each module; do not edit it by hand.

The rule: a claim is an item of the paper, or an item with a part in parentheses: a row, a sub-figure, an aspect. Each claim
belongs to exactly one file. Every equation is claimed as a whole. A table with several rows is claimed row by row.

"All rows" names the file in which a table's rows are recipes with the published numbers beside them: `evomoe table N` runs them.
Table 8 is in [parameters.md](parameters.md), Figures 1 and 5 are what `evomoe plot` draws. "Not yet" means that an item has no file of its own.
"""


def claims_of(docstring: str) -> list[tuple[str, str]]:
    """The claims in a module's docstring, as (item, part); the part of a whole item is empty.

    Raises:
        ValueError: an ``Implements:`` line does not read "claim, claim, claim.", or names an item that the paper lacks.
    """
    claims = []
    for line in re.findall(r"^Implements: (.*)$", docstring, re.MULTILINE):
        found = [(match[1], match[2] or "") for match in _CLAIM.finditer(line)]
        written = ", ".join(f"{item} ({part})" if part else item for item, part in found)
        if line != written + ".":
            raise ValueError(
                f"'Implements: {line}' must be claims such as 'Eq. 1' or 'Table 4 (a)', with commas and a full stop."
            )
        unknown = [item for item, _ in found if item not in ITEMS]
        if unknown:
            raise ValueError(f"'Implements: {line}': the paper has no {unknown[0]}.")
        claims += found
    return claims


def read_claims(docstrings: Mapping[str, str]) -> dict[str, list[tuple[str, str]]]:
    """Who claims what: by item, the (part, file) pairs in order.

    Args:
        docstrings: module docstrings by path below src/evomoe.

    Raises:
        ValueError: a line is malformed, one claim is made by two files, or an equation is claimed by none.
    """
    by_item: dict[str, list[tuple[str, str]]] = defaultdict(list)
    owner: dict[tuple[str, str], str] = {}
    for path, docstring in docstrings.items():
        try:
            claims = claims_of(docstring)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        for claim in claims:
            if claim in owner:
                item, part = claim
                raise ValueError(f"{item}{f' ({part})' if part else ''} is claimed by {owner[claim]} and by {path}.")
            owner[claim] = path
            by_item[claim[0]].append((claim[1], path))
    unclaimed = [item for item in ITEMS if item.startswith("Eq.") and (item, "") not in owner]
    if unclaimed:
        raise ValueError(f"No file claims {', '.join(unclaimed)}.")
    return {item: sorted(by_item[item]) for item in ITEMS}


def read_docstrings(source: Path = SOURCE) -> dict[str, str]:
    """The docstring of every module, by its path below ``source``."""
    paths = sorted(source.rglob("*.py"))
    return {p.relative_to(source).as_posix(): ast.get_docstring(ast.parse(p.read_text(encoding="utf-8"))) or "" for p in paths}


def paper_map(docstrings: Mapping[str, str]) -> str:
    """The text of docs/paper-map.md."""
    rows = ["| item | what it is | part | file | what the file is |", "| --- | --- | --- | --- | --- |"]
    for item, files in read_claims(docstrings).items():
        if not files:
            rows.append(f"| {item} | {ITEMS[item]} | | not yet | |")
        for part, path in files:
            summary = docstrings[path].partition("\n")[0].replace("|", "\\|")
            rows.append(f"| {item} | {ITEMS[item]} | {part} | [{path}](../src/evomoe/{path}) | {summary} |")
    return HEADER + "\n" + "\n".join(rows) + "\n"


RESULTS_HEADER = """# Results

`make docs` writes this page and a page a table from the numbers in [results](results), which
`evomoe table N --results docs/results` keeps. Do not edit them by hand.

"""

HOW_TO_READ = """## How to read a table

- Every row starts from the same small dense model. It takes as many optimiser steps on the
  fine-tuning mix as the others, unless the text below its table says otherwise.
- The models see the world of [mini.md](mini.md).
- Our number is the mean ± the standard deviation over the seeds.
- The number in parentheses is the paper's, of a model a thousand times as large on other data.
- The last column is the difference of AVG from the baseline, seed by seed, with its 95 % confidence
  interval.
"""


def _place(name: str) -> tuple[int, str]:
    """The paper's tables in order, then the others."""
    return (int(name), "") if name.isdigit() else (1000, name)


def _commits(runs: Iterable[Mapping[str, str]]) -> str:
    return ", ".join(dict.fromkeys(one["commit"] for one in runs))


def _title(table: "Table", found: Mapping[str, Any]) -> str:
    return table.heading + (f" ({found['split']} split)" if found["split"] != "test" else "")


EXPERTS_HEADER = """## Experts of Stage II, each alone

AVG on a part of the validation split. "Disagree" is the share of answers on which not all experts
agree, in %. "Best for each" is what the best expert for each question would have. The last two
columns compare the router with the best expert and with one drawn at random.
"""


def _experts_alone(experts: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of what each expert of Stage II had alone; rows and seeds that share Stage II and router share a line."""
    by_numbers = defaultdict(list)
    for name, one in experts.items():
        alone, whole = one["alone"], one.get("whole")
        cells = [", ".join(f"{score:.1f}" for score in alone)]
        cells += [f"{one[key]:.1f}" if key in one else "" for key in ("disagreement", "best", "whole")]
        cells += ["", ""] if whole is None else [f"{whole - max(alone):+.1f}", f"{whole - mean(alone):+.1f}"]
        by_numbers[tuple(cells)].append(name)
    header = ["row/seed", "experts", "disagree", "best for each", "router", "- best expert", "- one at random"]
    return header, [[", ".join(names), *cells] for cells, names in by_numbers.items()]


def table_page(table: "Table", found: Mapping[str, Any]) -> str:
    """The page of one table: where its numbers are from, the numbers, the experts behind them, notes."""
    from evomoe.paper.study.results import render
    from evomoe.support.text import markdown_table

    seeds = [seed for row in found["rows"].values() for seed in row["seeds"].values()]
    runs, trained = [seed["run"] for seed in seeds], [one for seed in seeds for one in seed.get("trained", ())]
    made = dict.fromkeys(", ".join(one[key] for key in ("date", "machine", "versions")) for one in runs)
    facts = [["scored on", f"{found['split']} split"], *(["run on", one] for one in made), ["scored at commits", _commits(runs)]]
    if trained:
        facts.append(["trained at commits", _commits(trained)])
    blocks = [f"# {_title(table, found)}", render(table, found)]
    if table.name == "anyexperts":
        blocks.append("![Score against real experts per token](anyexperts.png)")
    if table.notes:
        blocks.append("\n".join(f"- {note}" for note in table.notes))
    if found["experts"]:
        blocks += [EXPERTS_HEADER, markdown_table(*_experts_alone(found["experts"]))]
    blocks += ["## How this was made", markdown_table(["what", ""], facts)]
    blocks.append("[How to read a table](../results.md#how-to-read-a-table).")
    return "\n\n".join(block.strip() for block in blocks) + "\n"


def results(folder: Path = DOCS / "results") -> dict[str, str]:
    """The texts of the results by path below docs: a page a table, and the one that says what they say."""
    from evomoe.paper.tables import TABLES

    pages, contents = {}, []
    for path in sorted(folder.glob("table*.json"), key=lambda path: _place(path.stem.removeprefix("table"))):
        found = json.loads(path.read_text(encoding="utf-8"))
        table = TABLES[found["table"]]
        page = f"results/{path.stem}.md"
        pages[page] = table_page(table, found)
        contents.append(f"- [{_title(table, found)}]({page})")
    answers = folder / "answers.md"
    parts = [answers.read_text(encoding="utf-8")] if answers.is_file() else []
    parts += ["## The tables\n\n" + "\n".join(contents), HOW_TO_READ]
    return pages | {"results.md": RESULTS_HEADER + "\n\n".join(part.strip() for part in parts) + "\n"}


LOG_HEADER = """# Log of experiments

A page a day, newest first. Negative results stay. Each entry names the command, or says that its
script was thrown away. Write an entry into the page of its day; `make docs` writes this page.
"""


def log(folder: Path = DOCS / "log") -> str:
    """The text of docs/log.md: the days, and what their entries are called.

    Raises:
        ValueError: an entry is not on the page of its day.
    """
    parts = [LOG_HEADER]
    for path in sorted(folder.glob("*.md"), reverse=True):
        titles = re.findall(r"^## (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        for title in titles:
            if not title.startswith(f"{path.stem}: "):
                raise ValueError(f"{path}: the entry '{title}' must begin with '{path.stem}: ', the day of its page.")
        entries = "\n".join(f"- {title.removeprefix(f'{path.stem}: ')}" for title in titles)
        parts.append(f"## [{path.stem}](log/{path.name})\n\n{entries}\n")
    return "\n".join(parts)


def pages() -> dict[str, str]:
    """Every page that this writes, by its path below docs."""
    return results() | {"log.md": log(), "paper-map.md": paper_map(read_docstrings())}


def draw(folder: Path = DOCS / "results") -> None:
    """The picture of the study of AnyExperts, beside its numbers."""
    from evomoe.paper.figures.figure_experts_curve import plot_experts_curve

    if (kept := folder / "tableanyexperts.json").is_file():
        plot_experts_curve(json.loads(kept.read_text(encoding="utf-8")), folder / "anyexperts.png", folder / "anyexperts.svg")


if __name__ == "__main__":
    draw()
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")
