"""The stages of a run, in the paper's order, from one folder on disk to the next."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from evomoe.data.conversations import ConversationDataset
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.run_folder import Resume
from evomoe.support.errors import OptionError
from evomoe.support.files import write_text
from evomoe.support.processes import is_main_process
from evomoe.support.text import counted
from evomoe.training.checked_run import CheckedRun, check_run, load_data
from evomoe.training.report import report_run
from evomoe.training.stages import stage0_align, stage1_warmup, stage2_evolution, stage3_routing

logger = logging.getLogger(__name__)

STAGES = {
    0: stage0_align.train_stage,
    1: stage1_warmup.train_stage,
    2: stage2_evolution.train_stage,
    3: stage3_routing.train_stage,
}


def run(
    recipe: Recipe,
    resume: Resume = False,
    report: bool = True,
    label: str = "",
    datasets: Mapping[int, ConversationDataset] | None = None,
) -> Path:
    """Runs the recipe's stages one after the other, skipping those that are done.

    The data of all stages are checked before anything is written or trained.

    Args:
        recipe: the run.
        resume: go on with the unfinished run in the output folder; "if begun" also starts one where there is none.
        report: write report.md with pictures at the end.
        label: what the progress bars are called (default: as their stage).
        datasets: the checked data of each stage, if they are in memory already.

    Returns:
        The folder of the last stage's model.

    Raises:
        OptionError: an option or the output folder is refused.
        ValueError: a record or the model is refused; the message says what to do.
    """
    if not isinstance(recipe, Recipe):
        raise OptionError("recipe", f"{recipe!r} must be a Recipe; `Recipe.load` reads one from its file.")
    checked = check_run(recipe, resume)
    recipe, folder = checked.recipe, checked.folder
    datasets = datasets or load_data(recipe, checked.processor)
    if is_main_process():
        _begin(checked, resume, datasets)
    source: Path | str = recipe.model
    for stage in recipe.stages:
        own = folder.stage(stage, label)
        if not own.model.is_dir():
            own.path.mkdir(parents=True, exist_ok=True)
            with _timed(own.seconds):
                STAGES[stage](checked, source, own, datasets[stage])
        source = own.model
    if report and is_main_process():
        report_run(checked, Path(source), datasets[recipe.stages[-1]])
    return Path(source)


def _begin(checked: CheckedRun, resume: Resume, datasets: Mapping[int, ConversationDataset]) -> None:
    """Writes what lies in the folder from the start: the recipe, and which records are left out."""
    folder = checked.folder
    folder.path.mkdir(parents=True, exist_ok=True)
    if resume is True and not folder.has_begun():
        logger.warning("There is no run in %s yet: this one begins at the beginning.", folder.path)
    if not resume or not folder.has_begun():
        folder.clear()
    elif changes := checked.recipe.bad_record_changes(Recipe.load(folder.recipe)):
        where = ", ".join(
            f"step {folder.stage(stage).last_step()} of stage {stage}"
            for stage in checked.recipe.stages
            if folder.stage(stage).last_step()
        )
        line = f"From {where or 'its begin'} on: {'; '.join(changes)}."
        before = folder.changes.read_text(encoding="utf-8") if folder.changes.is_file() else ""
        write_text(folder.changes, f"{before}{line}\n")
        logger.warning("%s It stands in %s.", line, folder.changes)
    checked.recipe.save(folder.recipe)
    for note in dict.fromkeys(note for loaded in datasets.values() for note in loaded.notes):
        logger.warning("%s", note)
    skipped = [message for loaded in dict.fromkeys(datasets.values()) for message in loaded.skipped]
    if skipped:
        write_text(folder.skipped_records, "\n".join(skipped) + "\n")
        logger.warning("Left out: %s; see %s.", counted(len(skipped), "bad record"), folder.skipped_records)


@contextmanager
def _timed(path: Path) -> Iterator[None]:
    """Adds the seconds that the block takes, also when it is interrupted, to those in a file."""
    begin, before = time.monotonic(), float(path.read_text()) if path.is_file() else 0.0
    try:
        yield
    finally:
        if is_main_process():
            write_text(path, f"{before + time.monotonic() - begin:.1f}\n")
