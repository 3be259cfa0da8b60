"""What a study found: kept as data, shown beside the paper's numbers, each row compared with the baseline seed by seed."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evomoe.files import write_text
from evomoe.paper.study import Cell
from evomoe.paper.table import SEVEN, Table
from evomoe.paper.task import identity, last_parts
from evomoe.recipe import STAGES
from evomoe.tables import markdown_table

BENCHMARKS = dict(
    zip(
        SEVEN,
        ("mini-vqav2", "mini-gqa", "mini-sqa", "mini-textvqa-ocr", "mini-pope", "mini-mme", "mini-mmbench"),
        strict=True,
    )
)
"""What stands for the paper's columns in small."""

_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""Student's t at 97.5 %, for 1, 2, ... degrees of freedom."""


def collect(table: Table, cells: Sequence[Cell], study: Path, experts: Mapping[str, Any]) -> dict[str, Any]:
    """All that a table's run found, as it is kept.

    Args:
        cells: finished ones. Of each, the folder of its model below the study's is kept too.
        experts: what else is known of each row's experts, by row and seed.
    """
    rows: dict[str, Any] = {}
    for cell in cells:
        found = json.loads(cell.scoring.file(study).read_text())
        row = rows.setdefault(cell.row.name, {"label": cell.row.label, "recipe": _recipe(cell), "seeds": {}})
        kept = ["scores", "average", "run", "trained"]
        if table.counts_experts:
            kept.append("experts_per_token")
        row["seeds"][str(cell.seed)] = {key: found[key] for key in kept if key in found} | {
            "model": cell.scoring.model(Path()).as_posix()
        }
    return _questions(table, cells[0]) | {"rows": rows, "experts": dict(experts)}


def _recipe(cell: Cell) -> dict[str, Any]:
    """What is kept of a recipe: all but where its files lay, and the seed; of the base a hash of its weights too, and how it was asked."""
    recipe = asdict(cell.recipe) | {"model": identity(cell.scoring.base), "output": "", "seed": "each"}
    recipe |= {name: last_parts(recipe[name]) for name in ("data", "image_root")}
    for options in (recipe[f"stage{stage}"] for stage in STAGES):
        options["data"] = options["data"] and last_parts(options["data"])
    recipe["evolution"]["seed"] = "each"
    asked = {name: getattr(cell.scoring, name) for name in ("expert", "shuffle", "experts_per_token", "shuffle_importance")}
    return recipe | {name: value for name, value in asked.items() if value is not None}


def _questions(table: Table, cell: Cell) -> dict[str, Any]:
    """What numbers must have in common to stand in one table."""
    return {"table": table.name, "scale": "mini", "split": cell.scoring.split, "limit": cell.scoring.limit}


def _file(questions: Mapping[str, Any], folder: Path) -> Path:
    """A file for each table, and others for its other questions."""
    parts = [f"table{questions['table']}"]
    if questions["split"] != "test":
        parts.append(questions["split"])
    if questions["limit"]:
        parts.append(f"limit{questions['limit']}")
    return folder / f"{'-'.join(parts)}.json"


def is_kept(table: Table, cells: Sequence[Cell], folder: Path) -> bool:
    """Whether ``keep`` wrote earlier what these cells of one row, with the same recipe, questions and seeds, have found."""
    path = _file(_questions(table, cells[0]), folder)
    row = json.loads(path.read_text())["rows"].get(cells[0].row.name) if path.is_file() else None
    if row is None or row["recipe"] != _as_json(_recipe(cells[0])):
        return False
    return {str(cell.seed) for cell in cells} <= {*row["seeds"]}


def keep(found: Mapping[str, Any], folder: Path) -> tuple[Path, Mapping[str, Any]]:
    """Writes what was found, one file per table and questions; what an earlier run found stays, unless it is found again.

    A row whose recipe or base has changed loses its earlier seeds.

    Returns:
        The file, and all that it holds now.
    """
    path = _file(found, folder)
    folder.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        earlier = json.loads(path.read_text())
        rows = earlier["rows"] | {name: _joined(earlier["rows"].get(name), row) for name, row in found["rows"].items()}
        found = {**found, "rows": rows, "experts": earlier["experts"] | found["experts"]}
    write_text(path, json.dumps(found, indent=1) + "\n")
    return path, found


def _joined(earlier: Mapping[str, Any] | None, row: Mapping[str, Any]) -> Mapping[str, Any]:
    if earlier is None or earlier["recipe"] != _as_json(row["recipe"]):
        return row
    return {**row, "seeds": earlier["seeds"] | row["seeds"]}


def _as_json(recipe: Mapping[str, Any]) -> Any:
    """JSON knows no tuples."""
    return json.loads(json.dumps(recipe))


def paired_difference(ours: Sequence[float], baseline: Sequence[float]) -> tuple[float, float]:
    """The mean of the differences and the half width of its 95 % confidence interval (Student's t); infinite for one pair."""
    differences = [one - other for one, other in zip(ours, baseline, strict=True)]
    if len(differences) < 2:
        return differences[0], math.inf
    t = _T_975[min(len(differences) - 1, len(_T_975)) - 1]
    return statistics.mean(differences), t * statistics.stdev(differences) / math.sqrt(len(differences))


def render(table: Table, found: Mapping[str, Any]) -> str:
    """The table in Markdown: ours as mean ± standard deviation over the seeds, the paper's number in parentheses.

    Below it stand the table's further comparisons.
    """
    published = {row.name: row.published for row in table.rows}
    header = ["row", "seeds"]
    if table.counts_experts:
        header.append("real experts")
    header += table.headings
    if not table.average:
        header.append("AVG")
    if table.baseline:
        header.append(f"AVG - {table.baseline}")
    lines = []
    for row in table.rows:
        if (kept := found["rows"].get(row.name)) is None:
            continue
        seeds = kept["seeds"]
        numbers = published[row.name] or (None,) * len(table.headings)
        cells = [f"`{row.name}` {row.label}", str(len(seeds))]
        if table.counts_experts:
            cells.append(_spread([real_experts(seed) for seed in seeds.values()], digits=2))
        for heading, paper in zip(table.headings, numbers, strict=True):
            values = [_value(seed, heading) for seed in seeds.values()]
            cells.append(_spread(values) + (f" ({paper:g})" if paper is not None else ""))
        if not table.average:
            cells.append(_spread([seed["average"] for seed in seeds.values()]))
        if table.baseline:
            cells.append(_difference(seeds, found["rows"][table.baseline]["seeds"]) if row.name != table.baseline else "")
        lines.append(cells)
    further = [
        [f"{one} - {other}", _difference(found["rows"][one]["seeds"], found["rows"][other]["seeds"])]
        for one, other in table.comparisons
        if one in found["rows"] and other in found["rows"]
    ]
    compared = markdown_table(["rows", "difference of AVG"], further) if further else ""
    supplement = table.supplement(found) if table.supplement else ""
    return "\n\n".join(part for part in (markdown_table(header, lines), compared, supplement) if part)


def real_experts(seed: Mapping[str, Any]) -> float:
    """Of a token in an MoE layer, on average over the benchmarks."""
    return statistics.mean(seed["experts_per_token"].values())


def _value(seed: Mapping[str, Any], heading: str) -> float:
    return seed["average"] if heading == "AVG" else seed["scores"][BENCHMARKS[heading]]


def _spread(values: Sequence[float], digits: int = 1) -> str:
    mean = statistics.mean(values)
    return f"{mean:.{digits}f}" + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def _difference(ours: Mapping[str, Any], baseline: Mapping[str, Any]) -> str:
    common = [seed for seed in ours if seed in baseline]
    if not common:
        return ""
    return with_interval(*paired_difference([ours[s]["average"] for s in common], [baseline[s]["average"] for s in common]))


def with_interval(mean: float, half: float) -> str:
    """A difference and its interval, as a table has them."""
    return f"{mean:+.2f}" + (f" [{mean - half:+.2f}, {mean + half:+.2f}]" if math.isfinite(half) else "")
