"""Writes docs/paper-map.md from the ``Implements:`` lines of the modules, and docs/results.md from the numbers in docs/results.

Run it with ``make docs``.
"""

import ast
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE, OUTPUT, RESULTS = ROOT / "src" / "evomoe", ROOT / "docs" / "paper-map.md", ROOT / "docs" / "results.md"

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

Written by `make docs` from the numbers in [results](results), which `evomoe table N --results docs/results` keeps; do not edit it by
hand. Every row starts from the same small dense model and takes as many optimiser steps on the fine-tuning mix, unless the text below its
table says otherwise; see [mini.md](mini.md) for the world that it sees. Ours: mean ± standard deviation over the seeds; the paper's number, of a model a thousand times as large on other
data, in parentheses. The last column is the difference of AVG from the baseline, seed by seed, with its 95 % confidence interval.

"""


def _place(name: str) -> tuple[int, str]:
    """The paper's tables in order, then the others."""
    return (int(name), "") if name.isdigit() else (1000, name)


def _commits(runs: Iterable[Mapping[str, str]]) -> str:
    return ", ".join(dict.fromkeys(one["commit"] for one in runs))


def results(folder: Path = ROOT / "docs" / "results") -> str:
    """The text of docs/results.md."""
    from evomoe.paper.study.choosing import described
    from evomoe.paper.study.results import render
    from evomoe.paper.tables import TABLES

    parts = []
    for path in sorted(folder.glob("table*.json"), key=lambda path: _place(path.stem.removeprefix("table"))):
        found = json.loads(path.read_text(encoding="utf-8"))
        table = TABLES[found["table"]]
        seeds = [seed for row in found["rows"].values() for seed in row["seeds"].values()]
        runs, trained = [seed["run"] for seed in seeds], [one for seed in seeds for one in seed.get("trained", ())]
        run = "; ".join(dict.fromkeys(", ".join(one[key] for key in ("date", "machine", "versions")) for one in runs))
        commits = f"scored at commits {_commits(runs)}"
        if trained:
            commits += f", trained at {_commits(trained)}"
        by_what = defaultdict(list)  # rows that share Stage II share these
        for name, one in found["experts"].items():
            by_what[described(one)].append(name)
        experts = [f"- {', '.join(names)}: {what}" for what, names in by_what.items()]
        title = f"## {table.heading}"
        if found["split"] != "test":
            title += f" ({found['split']} split)"
        blocks = [title, f"{found['split']} split; {run}; {commits}", render(table, found)]
        if experts:
            heading = "Experts of Stage II, each alone on a part of the validation split (row/seed, AVG):"
            blocks.append(f"{heading}\n\n" + "\n".join(experts))
        if table.name == "anyexperts":
            blocks.append("![Score against real experts per token](results/anyexperts.png)")
        blocks.append("\n".join(f"- {note}" for note in table.notes))
        parts.append("\n\n".join(blocks))
    answers = folder / "answers.md"
    if answers.is_file():
        parts.insert(0, answers.read_text(encoding="utf-8"))
    return RESULTS_HEADER + "\n\n".join(part.strip() for part in parts) + "\n"


def draw(folder: Path = ROOT / "docs" / "results") -> None:
    """The picture of the study of AnyExperts, beside its numbers."""
    from evomoe.paper.figures.figure_experts_curve import plot_experts_curve

    if (kept := folder / "tableanyexperts.json").is_file():
        plot_experts_curve(json.loads(kept.read_text(encoding="utf-8")), folder / "anyexperts.png", folder / "anyexperts.svg")


if __name__ == "__main__":
    draw()
    RESULTS.write_text(results(), encoding="utf-8")
    OUTPUT.write_text(paper_map(read_docstrings()), encoding="utf-8")
