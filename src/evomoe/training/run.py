"""The stages of a run, in the paper's order, from one folder on disk to the next."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from evomoe.data.conversations import ConversationDataset
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.run_folder import check_output, clear, stage_folder
from evomoe.support.files import write_text
from evomoe.support.processes import is_main_process
from evomoe.support.text import counted
from evomoe.training.stage import as_its_model, check_recipe, load_data
from evomoe.training.stages import stage0_align, stage1_warmup, stage2_evolution, stage3_routing

logger = logging.getLogger(__name__)

RUNNERS = {0: stage0_align.run, 1: stage1_warmup.run, 2: stage2_evolution.run, 3: stage3_routing.run}


def run(
    recipe: Recipe,
    resume: bool = False,
    report: bool = True,
    label: str = "",
    datasets: Mapping[int, ConversationDataset] | None = None,
) -> Path:
    """Runs the recipe's stages one after the other, skipping those that are done.

    The data of all stages are checked before anything is written or trained.

    Args:
        recipe: the run.
        resume: go on with the unfinished run in the output folder.
        report: write report.md with pictures at the end.
        label: what the progress bars are called (default: as their stage).
        datasets: the checked data of each stage, if they are in memory already.

    Returns:
        The folder of the last stage's model.

    Raises:
        ValueError: an option, a record, the model or the output folder is refused; the message says what to do.
    """
    if recipe.stages == (3,):
        recipe = as_its_model(recipe)
    check_output(recipe, resume)
    check_recipe(recipe)
    datasets = datasets or load_data(recipe)
    output = Path(recipe.output)
    if is_main_process():
        output.mkdir(parents=True, exist_ok=True)
        if not resume:
            clear(output)
        recipe.save(output / "recipe.json")
        skipped = [message for loaded in dict.fromkeys(datasets.values()) for message in loaded.skipped]
        if skipped:
            write_text(output / "skipped_records.txt", "\n".join(skipped) + "\n")
            logger.warning("Left out: %s; see %s.", counted(len(skipped), "bad record"), output / "skipped_records.txt")
    source: Path | str = recipe.model
    for stage in recipe.stages:
        folder = replace(stage_folder(output, stage), label=label)
        if not folder.model.is_dir():
            folder.path.mkdir(parents=True, exist_ok=True)
            with _timed(folder.path / "seconds.txt"):
                RUNNERS[stage](recipe, source, folder, datasets[stage])
        source = folder.model
    if report and is_main_process():
        from evomoe.training.report import report_run

        report_run(recipe, Path(source), datasets[recipe.stages[-1]])
    return Path(source)


@contextmanager
def _timed(path: Path) -> Iterator[None]:
    """Adds the seconds that the block takes, also when it is interrupted, to those in a file."""
    begin, before = time.monotonic(), float(path.read_text()) if path.is_file() else 0.0
    try:
        yield
    finally:
        if is_main_process():
            write_text(path, f"{before + time.monotonic() - begin:.1f}\n")


__all__ = ["RUNNERS", "run"]
