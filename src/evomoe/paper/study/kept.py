"""What a study found, kept as data: a file for each table, beside what earlier runs found."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomoe.paper.study.study import Cell
from evomoe.paper.study.task import identity, last_parts, recipe_values
from evomoe.paper.tables.table import Table
from evomoe.recipe.options import STAGES
from evomoe.support.files import write_text
from evomoe.support.parse_json import parse_json


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
    recipe = recipe_values(cell.recipe) | {"model": identity(cell.scoring.base), "output": "", "seed": "each"}
    recipe |= {name: last_parts(recipe[name]) for name in ("data", "image_root")}
    for options in (recipe[f"stage{stage}"] for stage in STAGES):
        options["data"] = options["data"] and last_parts(options["data"])
    recipe["evolution"]["seed"] = "each"
    return recipe | cell.scoring.intervention.changes()


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
    return folder / ("-".join(parts) + ".json")


def check_kept(table: Table, cell: Cell, folder: Path) -> None:
    """Raises ValueError, before anything is run, if what earlier runs kept cannot be joined with what this one will find."""
    _earlier(_file(_questions(table, cell), folder))


def _earlier(path: Path) -> Mapping[str, Any]:
    """What a file of a table's results holds; nothing if it is not there."""
    values = parse_json(path.read_text(encoding="utf-8"), str(path)) if path.exists() else {"rows": {}, "experts": {}}
    if not isinstance(values, dict) or not all(isinstance(values.get(part), dict) for part in ("rows", "experts")):
        raise ValueError(f"{path}: it holds no results of a table; remove it, or name another `results`.")
    return values


def is_kept(table: Table, cells: Sequence[Cell], folder: Path) -> bool:
    """Whether ``keep`` wrote earlier what these cells of one row, with the same recipe, questions and seeds, have found."""
    path = _file(_questions(table, cells[0]), folder)
    row = _earlier(path)["rows"].get(cells[0].row.name)
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
    earlier = _earlier(path)
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
