"""``evomoe table``: one table of the paper, run in small here, or planned for a cluster."""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from evomoe import mini
from evomoe.paper.study.kept import check_kept, collect, is_kept, keep
from evomoe.paper.study.results import render
from evomoe.paper.study.scale import MINI
from evomoe.paper.study.study import Cell, all_tasks, cells, experts_alone, run
from evomoe.paper.study.task import Scoring, Training
from evomoe.paper.tables import TABLES
from evomoe.paper.tables.table import Row, Table
from evomoe.recipe.options import MOST_RECORDS, MOST_WORKERS, check_whole
from evomoe.support.errors import OptionError, no_such
from evomoe.support.names import check_output_folder
from evomoe.support.text import counted

_ELSEWHERE = {
    "1": "Table 1 compares with models of others; score any of them with `evomoe eval`.",
    "7": "Table 7 is what `scale=paper` takes its data, steps and hours from.",
    "8": "Table 8 is computed, not trained: docs/parameters.md, or `evomoe params MODEL`.",
}
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
    say: Callable[[str], Any] = lambda text: None,
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
        say: takes what is known before the longest part of the run begins: the scores of each expert alone.

    Raises:
        OptionError: there is no such table or row, or a number is too small.
        ValueError: a task failed.
    """
    table = find(name)
    chosen = with_baseline(table, rows)
    for option, value, least, most in (
        ("seeds", seeds, 0, MOST_RECORDS),
        ("jobs", jobs, 1, MOST_WORKERS),
        ("limit", limit, 0, math.inf),
    ):
        check_whole(option, value, least, most)
    for option, folder in (("study", study), ("results", results)):
        if folder is not None:
            check_output_folder(folder, option)
    worlds, bases = _starting_points(chosen, make=not dry_run)
    wanted = cells(chosen, range(seeds or table.seeds), MINI, bases, worlds, split, limit)
    if results:
        check_kept(table, wanted[0], results)
        wanted = _without_kept_baseline(table, rows, wanted, results)
    if dry_run:
        return _describe_run(wanted, bases, study)
    experts = _ask_experts_alone(wanted, study, jobs)
    if experts:
        say(_describe_experts(experts))
    run([cell.scoring for cell in wanted], study, jobs)
    experts = {key: experts[key] | {"whole": average} for key, average in _ask_with_router(wanted, study, jobs).items()}
    return _tell(table, wanted, collect(table, wanted, study, experts), study, results)


def _starting_points(rows: Sequence[Row], make: bool) -> tuple[dict[int, Path], dict[str, Path]]:
    """The folder of each mini world, and that of the base model of each width; with ``make`` they are made where they are missing."""
    from evomoe.paper.study import base_model  # imports torch, which a plan and a wrong name need not wait for
    from evomoe.paper.study.both_mixes import ensure_both

    records = dict.fromkeys(MINI.new_records(row) for row in rows)
    widths = dict.fromkeys(row.width for row in rows)
    if not make:
        return {count: mini.folder(0, stage2=count) for count in records}, {width: base_model.folder(width) for width in widths}
    worlds = {count: mini.ensure(0, stage2=count) for count in records}
    for row in rows:
        ensure_both(worlds[MINI.new_records(row)], row.recipe)
    return worlds, {width: base_model.ensure(width) for width in widths}


def _without_kept_baseline(table: Table, names: Sequence[str], wanted: list[Cell], results: Path) -> list[Cell]:
    """Leaves out the baseline if nobody asked for it by name and an earlier run kept it for these seeds."""
    baseline = [cell for cell in wanted if cell.row.name == table.baseline]
    asked_for = not names or table.baseline in names
    if not baseline or asked_for or not is_kept(table, baseline, results):
        return wanted
    return [cell for cell in wanted if cell.row.name != table.baseline]


def _probes(cell: Cell) -> list[Scoring]:
    return experts_alone(cell, PROBED)


def _describe_run(wanted: Sequence[Cell], bases: Mapping[str, Path], study: Path) -> str:
    """What a run would do."""
    seeds = Counter((cell.row.name, cell.row.label) for cell in wanted)
    lines = [f"{name} ({label}): {counted(count, 'seed')}" for (name, label), count in seeds.items()]
    lines += [f"{base.name}: the base model, not trained yet" for base in bases.values() if not base.is_dir()]
    tasks = all_tasks([scoring for cell in wanted for scoring in (*_probes(cell), cell.scoring)])
    left = [task for task in tasks if not task.done(study)]
    trainings = sum(isinstance(task, Training) for task in left)
    scorings = len(left) - trainings
    lines.append(f"{len(tasks)} tasks, {len(left)} to be run: {counted(trainings, 'training')}, {counted(scorings, 'scoring')}")
    return "\n".join(lines)


def _ask_experts_alone(wanted: Sequence[Cell], study: Path, jobs: int) -> dict[str, dict[str, Any]]:
    """By row and seed, what choosing among its experts is worth, and on how many answers they disagree; nothing for rows without Stage II."""
    from evomoe.analysis.uniformity import disagreement
    from evomoe.paper.study.choosing import choosing
    from evomoe.paper.study.shared_inputs import benchmarks

    asked = {_key(cell): probes for cell in wanted if (probes := _probes(cell))}
    run([*chain.from_iterable(asked.values())], study, jobs)
    experts = {}
    for key, probes in asked.items():
        found = [json.loads(probe.file(study).read_text()) for probe in probes]
        answers = [[*chain.from_iterable(given.values() for given in one["answers"].values())] for one in found]
        prepared = benchmarks(probes[0].base, probes[0].world / probes[0].split, probes[0].limit)
        experts[key] = choosing(prepared, found) | {"disagreement": 100 * disagreement(answers)}
    return experts


def _ask_with_router(wanted: Sequence[Cell], study: Path, jobs: int) -> dict[str, float]:
    """By row and seed, the AVG of the trained model on the questions that its experts answered alone."""
    asked = {
        _key(cell): replace(probes[0], training=cell.scoring.training, intervention=cell.row.intervention)
        for cell in wanted
        if (probes := _probes(cell))
    }
    run([*asked.values()], study, jobs)
    return {key: json.loads(scoring.file(study).read_text())["average"] for key, scoring in asked.items()}


def _key(cell: Cell) -> str:
    return f"{cell.row.name}/{cell.seed}"


def _describe_experts(experts: Mapping[str, Mapping[str, Any]]) -> str:
    from evomoe.paper.study.choosing import described

    return "\n".join(f"{key}: experts {described(one)} (validation split)" for key, one in experts.items())


def _tell(table: Table, wanted: Sequence[Cell], found: Mapping[str, Any], study: Path, results: Path | None) -> str:
    """The table with its heading and notes, and where the models and the numbers are, which are kept in ``results``."""
    limit = found["limit"]
    heading = f"{table.heading} ({found['split']} split"
    if limit:
        heading += f", {counted(limit, 'question')} per benchmark"
    models = [f"`{cell.row.name}`, seed {cell.seed}: {cell.scoring.model(study)}" for cell in wanted]
    said = ["\n".join(["Models:", *models])]
    if results:
        path, found = keep(found, results)
        said.append(f"Kept in {path}.")
    parts = [f"{heading})", render(table, found)]
    if own := {key: one for key, one in found["experts"].items() if key in {*map(_key, wanted)}}:
        parts.append(_describe_experts(own))
    if limit:
        parts.append(
            "A trial: MME adds up its subtasks, of which so few questions reach only some, so that its sum and AVG are too low."
        )
    return "\n\n".join([*parts, *table.notes, *said])


def plan_table(name: str, rows: Sequence[str] = (), study: Path = Path("runs/study"), dry_run: bool = False) -> str:
    """A table at the paper's scale: what it takes, and the commands; unless ``dry_run``, writes the rows' recipes below ``study``.

    Raises:
        OptionError: there is no such table or row, or the paper does not have it.
    """
    from evomoe.paper.plan import describe_plan

    table = find(name)
    if not table.name.isdigit():
        raise OptionError("scale", f"{table.name} is a study of our own, and the paper has no such table. Choose scale 'mini'.")
    chosen = [row for row in with_baseline(table, rows) if row.protocol == "equal"]  # there it is the paper's for all
    return describe_plan(table, chosen, study / "paper" / f"table{name}", not dry_run)


def find(name: str) -> Table:
    """Raises OptionError if there is no such table."""
    if name not in TABLES:
        elsewhere = f" {_ELSEWHERE[name]}" if name in _ELSEWHERE else ""
        raise OptionError("name", f"{no_such(name, TABLES, 'table')}.{elsewhere}")
    return TABLES[name]


def with_baseline(table: Table, names: Sequence[str]) -> list[Row]:
    rows = table.chosen(names)
    missing = [] if not table.baseline or any(row.name == table.baseline for row in rows) else table.chosen([table.baseline])
    return missing + rows
