"""The stages of a run, in the paper's order, from one folder on disk to the next."""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from evomoe.data.conversations import ConversationDataset
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.run_folder import Resume
from evomoe.support.errors import OptionError
from evomoe.support.files import naming, remove, write_text
from evomoe.support.processes import is_main_process
from evomoe.support.text import counted
from evomoe.training.checked_run import CheckedRun, check_run, load_data
from evomoe.training.identity import same_run
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
    resume_anyway: bool = False,
) -> Path:
    """Runs the recipe's stages one after the other, skipping those that are done.

    The data of all stages are checked before anything is written or trained.

    Args:
        recipe: the run.
        resume: go on with the unfinished run in the output folder; "if begun" also starts one where there is none.
        report: write report.md with pictures at the end.
        label: what the progress bars are called (default: as their stage).
        datasets: the checked data of each stage, if they are in memory already.
        resume_anyway: go on also if weights, data or the number of processes are others than when the run began.

    Returns:
        The folder of the last stage's model.

    Raises:
        OptionError: an option or the output folder is refused.
        ValueError: a record or the model is refused; the message says what to do.
    """
    if not isinstance(recipe, Recipe):
        raise OptionError("recipe", f"{recipe!r} must be a Recipe; `Recipe.load` reads one from its file.")
    resume = True if resume_anyway else resume
    checked = check_run(recipe, resume)
    recipe, folder = checked.recipe, checked.folder
    with ExitStack() as held:
        if is_main_process() and folder.path.is_dir():
            held.enter_context(folder.locked())
        datasets = datasets or load_data(recipe, checked.processor)
        checked.check_data(datasets)
        if is_main_process():
            if not folder.path.is_dir():
                with naming(folder.path, "Name another `output`."):
                    folder.path.mkdir(parents=True)
                held.enter_context(folder.locked())
            folder.check(recipe, resume)  # again: another command may have begun meanwhile
            _begin(checked, resume, datasets, resume_anyway)
        return _train(checked, label, datasets, report)


def _train(checked: CheckedRun, label: str, datasets: Mapping[int, ConversationDataset], report: bool) -> Path:
    """The stages that are not done yet, and the report."""
    recipe, folder = checked.recipe, checked.folder
    source: Path | str = recipe.model
    for stage in recipe.stages:
        own = folder.stage(stage, label)
        if not own.model.is_dir():
            if is_main_process():  # which looks before whether the folder may be used
                own.path.mkdir(parents=True, exist_ok=True)
            with _timed(own.seconds):
                STAGES[stage](checked, source, own, datasets[stage])
        elif is_main_process():
            remove(own.checkpoints)  # it may have been killed just when it was done
        source = own.model
    if report and is_main_process():
        try:
            report_run(checked, Path(source), datasets[recipe.stages[-1]])
        except Exception as error:  # a trained model is worth more than its report
            logger.warning("%s is whole, but its report could not be written (%s); `resume=True` tries again.", source, error)
    return Path(source)


def _begin(checked: CheckedRun, resume: Resume, datasets: Mapping[int, ConversationDataset], anyway: bool) -> None:
    """Writes what lies in the folder from the start: what the run is, the recipe, and which records are left out.

    Raises:
        OptionError: weights, data or processes are others than when the run began.
    """
    folder = checked.folder
    if resume is True and not folder.has_begun():
        logger.warning("There is no run in %s yet: this one begins at the beginning.", folder.path)
    elif resume is True and not folder.can_resume():
        logger.warning("The run in %s has no checkpoint yet: it begins at the beginning.", folder.path)
    if resume != "known":  # whose caller knows that it is the same
        now = same_run(checked, datasets, anyway)
        write_text(folder.identity, json.dumps(now, indent=1) + "\n")
    if not resume or not folder.has_begun():
        folder.clear()
    elif resume != "known" and (changes := checked.recipe.bad_record_changes(Recipe.load(folder.recipe))):
        where = ", ".join(
            f"step {step} of stage {stage}"
            for stage in checked.recipe.stages
            if (step := folder.stage(stage).last_step())  # it reads the whole checkpoint
        )
        line = f"From {where or 'its begin'} on: {'; '.join(changes)}."
        before = folder.changes.read_text(encoding="utf-8") if folder.changes.is_file() else ""
        write_text(folder.changes, f"{before}{line}\n")
        logger.warning("%s It stands in %s.", line, folder.changes)
    checked.recipe.save(folder.recipe)
    for note in dict.fromkeys(note for loaded in datasets.values() for note in loaded.notes):
        logger.warning("%s", note)
    for warning in dict.fromkeys(told for stage, loaded in datasets.items() for told in checked.warnings(stage, loaded)):
        logger.warning("%s", warning)
    skipped = [message for loaded in dict.fromkeys(datasets.values()) for message in loaded.skipped]
    if skipped:
        write_text(folder.skipped_records, "\n".join(skipped) + "\n")
        logger.warning("Left out: %s; see %s.", counted(len(skipped), "bad record"), folder.skipped_records)


@contextmanager
def _timed(path: Path) -> Iterator[None]:
    """Adds the seconds that the block takes, also when it is interrupted, to those in a file."""
    begin, before = time.monotonic(), float(path.read_text()) if path.is_file() else 0.0

    def write() -> None:
        if is_main_process():
            write_text(path, f"{before + time.monotonic() - begin:.1f}\n")

    try:
        yield
    except BaseException:
        with suppress(OSError):  # on a full disk what failed first is to be told
            write()
        raise
    write()
