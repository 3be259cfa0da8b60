"""``evomoe table``: one table of the paper, run in small here, or planned for a cluster."""

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from evomoe.paper.table import Row, Table
from evomoe.paper.tables import TABLES
from evomoe.support.errors import OptionError
from evomoe.words import counted

_ELSEWHERE = {
    "1": "Table 1 compares with models of others; score any of them with `evomoe eval`.",
    "7": "Table 7 is what `scale=paper` takes its data, steps and hours from.",
    "8": "Table 8 is computed, not trained: docs/parameters.md, or `evomoe params MODEL`.",
}
_TRIAL = "A trial: MME adds up its subtasks, of which so few questions reach only some, so that its sum and AVG are too low."
PROBED = 100
"""Questions of each benchmark that every expert answers alone before Stage III."""


def run_table(
    name: str,
    rows: Sequence[str] = (),
    seeds: int = 0,
    jobs: int = 1,
    split: Literal["test", "validation"] = "test",
    limit: int = 0,
    study: Path = Path("runs/study"),
    results: Path | None = None,
    dry_run: bool = False,
) -> str:
    """Runs a table's rows in small, or goes on with them, and returns the table in Markdown.

    Args:
        rows: names; all if empty. The baseline is run too, unless ``results`` has it for these seeds.
        seeds: how many; 0 for the table's own number.
        jobs: tasks at once.
        limit: questions per benchmark; 0 for all.
        study: folder of all runs.
        results: folder to keep the numbers in, as ``table<N>.json``; what it holds of other rows is shown too.
        dry_run: say what would be run; train nothing.

    Raises:
        OptionError: there is no such table or row, or a number is too small.
        ValueError: a task failed.
    """
    table = find(name)
    chosen = with_baseline(table, rows)
    for option, value, least in (("seeds", seeds, 0), ("jobs", jobs, 1), ("limit", limit, 0)):
        if value < least:
            raise OptionError(option, f"{value} must be at least {least}.")
    seeds = seeds or table.seeds
    from evomoe.analysis.uniformity import disagreement
    from evomoe.data import mini
    from evomoe.paper import base_model
    from evomoe.paper.results import collect, is_kept, keep, render
    from evomoe.paper.scale import MINI
    from evomoe.paper.study import all_tasks, cells, experts_alone, run
    from evomoe.paper.task import Training

    widths = dict.fromkeys(row.width for row in chosen)
    if dry_run:
        world, bases = mini.folder(0), {width: base_model.folder(width) for width in widths}
    else:
        world, bases = mini.ensure(0), {width: base_model.ensure(width) for width in widths}
    wanted = cells(chosen, range(seeds), MINI, bases, world, split, limit)
    if rows and results and table.baseline not in rows and is_kept(table, wanted[:seeds], results):
        chosen, wanted = chosen[1:], wanted[seeds:]  # the baseline was added as the first row
    alone = {(cell.row.name, cell.seed): experts_alone(cell, PROBED) for cell in wanted}
    probes = [scoring for scorings in alone.values() for scoring in scorings]
    if dry_run:
        tasks = all_tasks([*probes, *(cell.scoring for cell in wanted)])
        left = [task for task in tasks if not task.done(study)]
        lines = [f"{row.name} ({row.label}): {seeds} {'seed' if seeds == 1 else 'seeds'}" for row in chosen]
        lines += [f"{base.name}: the base model, not trained yet" for base in bases.values() if not base.is_dir()]
        trainings = sum(isinstance(task, Training) for task in left)
        lines += [
            f"{len(tasks)} tasks, {len(left)} to be run: {counted(trainings, 'training')}, {counted(len(left) - trainings, 'scoring')}"
        ]
        return "\n".join(lines)
    run(probes, study, jobs)
    experts: dict[str, dict[str, Any]] = {}
    for (name, seed), scorings in alone.items():
        if scorings:
            found = [json.loads(scoring.file(study).read_text()) for scoring in scorings]
            experts[f"{name}/{seed}"] = {
                "alone": [one["average"] for one in found],
                "disagreement": 100 * disagreement([[*chain(*map(dict.values, one["answers"].values()))] for one in found]),
            }
    before = "\n".join(
        f"{key}: experts alone {', '.join(f'{score:.1f}' for score in one['alone'])}; "
        f"they disagree on {one['disagreement']:.1f} % of the answers (validation split)"
        for key, one in experts.items()
    )
    if before:
        print(before, flush=True)
    run([cell.scoring for cell in wanted], study, jobs)
    found = collect(table, wanted, study, experts)
    models = [f"`{cell.row.name}`, seed {cell.seed}: {cell.scoring.model(study)}" for cell in wanted]
    said = ["\n".join(["Models:", *models])]
    if results:
        path, found = keep(found, results)
        said.append(f"Kept in {path}.")
    asked, notes = f"{split} split", list(table.notes)
    if limit:
        asked += f", {counted(limit, 'question')} per benchmark"
        notes.insert(0, _TRIAL)
    return "\n\n".join([f"{table.heading} ({asked})", render(table, found), *notes, *said])


def plan_table(name: str, rows: Sequence[str] = (), study: Path = Path("runs/study"), dry_run: bool = False) -> str:
    """A table at the paper's scale: what it takes, and the commands; unless ``dry_run``, writes the rows' recipes below ``study``.

    Raises:
        OptionError: there is no such table or row, or the paper does not have it.
    """
    from evomoe.paper.plan import describe_plan

    table = find(name)
    if not table.name.isdigit():
        raise OptionError("scale", f"{table.name} is a study of our own, which the paper has not at its scale.")
    return describe_plan(table, with_baseline(table, rows), study / "paper" / f"table{name}", not dry_run)


def find(name: str) -> Table:
    """Raises OptionError if there is no such table."""
    if name not in TABLES:
        elsewhere = f" {_ELSEWHERE[name]}" if name in _ELSEWHERE else ""
        raise OptionError("name", f"there is no table {name} to run; choose from {', '.join(TABLES)}.{elsewhere}")
    return TABLES[name]


def with_baseline(table: Table, names: Sequence[str]) -> list[Row]:
    rows = table.chosen(names)
    missing = [] if not table.baseline or any(row.name == table.baseline for row in rows) else table.chosen([table.baseline])
    return missing + rows
