"""Runs the rows of a table: what they share once, what is finished never again, several pieces at a time."""

import contextlib
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path

from tqdm import tqdm

from evomoe.analysis.intervention import Intervention
from evomoe.paper.study.scale import MiniScale
from evomoe.paper.study.task import Scoring, Task, Training, run_once, source_of
from evomoe.paper.tables.table import Row
from evomoe.recipe.recipe import Recipe


@dataclass(frozen=True)
class Cell:
    """One row with one seed, and the scoring that fills it."""

    row: Row
    seed: int
    recipe: Recipe
    scoring: Scoring


def cells(
    rows: Sequence[Row],
    seeds: Sequence[int],
    scale: MiniScale,
    bases: Mapping[str, Path],
    worlds: Mapping[int, Path],
    split: str,
    limit: int = 0,
) -> list[Cell]:
    """What is to be run for these rows and seeds.

    Args:
        bases: folder of the model of Stage I, by ``Row.width``.
        worlds: folder of the mini world, by ``MiniScale.new_records``.
    """
    found = []
    for row in rows:
        world = worlds[scale.new_records(row)]
        for seed in seeds:
            recipe = scale.recipe(row, seed, bases[row.width], world)
            found.append(Cell(row, seed, recipe, Scoring(trainings(recipe)[-1], world, split, limit, row.intervention)))
    return found


def trainings(recipe: Recipe) -> list[Training]:
    """A recipe's stages, each from the one before."""
    from evomoe.conversion.expert_init import option_from_stage2  # loads torch, for which a wrong name need not wait

    chain: list[Training] = []
    for stage in recipe.stages:
        options = recipe.init_options
        if stage == 3 and (needed := option_from_stage2(recipe.expert_init)):
            options = {needed: "from Stage II", **options}
        single = recipe.but(stages=(stage,), init_options=options)
        chain.append(Training(single, chain[-1] if chain else Path(recipe.model)))
    return chain


def experts_alone(cell: Cell, limit: int) -> list[Scoring]:
    """Each expert of a row's Stage II on its own, on the validation split; nothing for a row without that stage."""
    training = next((one for one in trainings(cell.recipe) if one.stage == 2), None)
    if training is None:
        return []
    count = cell.recipe.moe.num_experts
    world = cell.scoring.world
    return [Scoring(training, world, "validation", limit, Intervention(expert=expert)) for expert in range(count)]


def all_tasks(wanted: Sequence[Task]) -> list[Task]:
    """These tasks and all that must come before, each once, in an order in which they can run."""
    ordered: dict[str, Task] = {}

    def add(task: Task) -> None:
        if (before := source_of(task)) is not None:
            add(before)
        ordered.setdefault(task.name, task)

    for task in wanted:
        add(task)
    return list(ordered.values())


def run(wanted: Sequence[Task], study: Path, jobs: int = 1) -> None:
    """Runs what is not done yet.

    Args:
        study: folder of all results; a task that was interrupted goes on from its last checkpoint.
        jobs: how many tasks at once, in as many processes that share the processor's cores; 1 runs them here.

    Raises:
        ValueError: a task failed; the message names it, says why and where its log is.
    """
    study.mkdir(parents=True, exist_ok=True)
    tasks = all_tasks(wanted)
    left = {task.name: task for task in tasks if not task.done(study)}
    with tqdm(total=len(tasks), initial=len(tasks) - len(left), unit="task", desc="study", dynamic_ncols=True) as bar:
        for _ in _one_by_one(left, study, bar) if jobs == 1 else _side_by_side(left, study, jobs, bar):
            bar.update()


def _one_by_one(left: dict[str, Task], study: Path, bar: tqdm) -> Iterator[None]:
    for task in left.values():
        bar.set_postfix_str(task.name)
        run_once(task, study)
        yield


def _side_by_side(left: dict[str, Task], study: Path, jobs: int, bar: tqdm) -> Iterator[None]:
    waiting, running = dict(left), dict[Future[None], Task]()
    threads, others = max(1, (os.cpu_count() or 1) // jobs), {*active_children()}
    with _threads(threads), ProcessPoolExecutor(jobs, get_context("spawn"), _end_with_parent) as pool:
        try:
            while waiting or running:
                for task in [*waiting.values()]:
                    before = source_of(task)
                    if len(running) < jobs and (before is None or before.name not in left):
                        running[pool.submit(_run, task, study, threads)] = waiting.pop(task.name)
                bar.set_postfix_str(", ".join(task.name for task in running.values()))
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    task = running.pop(future)
                    if isinstance(error := future.exception(), BrokenProcessPool):
                        at = ", ".join(sorted(one.name for one in (task, *running.values())))
                        raise ValueError(
                            f"A process ended before its time, at {at} (logs in {study}). If the system was short of memory, take a "
                            "smaller `jobs`; the same command goes on from there."
                        ) from error
                    if error is not None:
                        raise ValueError(f"{task.name} failed: {error} (log: {study / task.name}.log)") from error
                    del left[task.name]
                    yield
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in {*active_children()} - others:
                process.terminate()  # its task goes on from its last checkpoint another time
            raise


def _end_with_parent() -> None:
    """In one of the processes: a command that is killed leaves none of them behind, waiting for work."""
    parent = parent_process()

    def wait_for_its_end() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait_for_its_end, daemon=True).start()


def _run(task: Task, study: Path, threads: int) -> None:
    """In one of the processes, with a log of its own."""
    import torch

    torch.set_num_threads(threads)
    with open(study / f"{task.name}.log", "a", encoding="utf-8") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
        try:
            run_once(task, study)
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            sys.stdout.flush()  # before the next task's log takes its place
            sys.stderr.flush()


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Child processes start with so many threads."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
