"""A run's folder: what its stages leave there, and whether a run may start or go on in it. Needs neither torch nor transformers."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from evomoe.recipe.options import STAGES
from evomoe.recipe.recipe import Recipe
from evomoe.support.errors import OptionError
from evomoe.support.names import check_folder, check_output_folder, refuse_missing, split_name
from evomoe.support.processes import is_main_process


@dataclass(frozen=True)
class StageFolder:
    """Where one stage leaves its work: ``model/`` when it is done, ``checkpoints/`` on the way.

    Attributes:
        path: the folder.
        label: what the progress bar is called; empty for the stage's name.
    """

    path: Path
    label: str = ""

    @property
    def model(self) -> Path:
        """The finished model; it exists only when the stage is done."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that was written to its end."""
        whole = [p for p in self.checkpoints.glob("checkpoint-*") if (p / "trainer_state.json").is_file()]
        return max(whole, key=_step, default=None)

    def last_step(self) -> int:
        """The step of the newest checkpoint; 0 without one."""
        checkpoint = self.last_checkpoint()
        return _step(checkpoint) if checkpoint else 0


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def stage_folder(output: str | Path, stage: int) -> StageFolder:
    """The folder of a stage inside a run folder, e.g. ``stage2_evolution``."""
    return StageFolder(Path(output) / f"stage{stage}_{STAGES[stage]}")


def results_folder(verb: str, checkpoint: str | Path, output: str | None = None) -> Path:
    """Where a verb's results on a checkpoint go: ``output``, or runs/VERB/NAME, NAME from the checkpoint's path.

    Trained checkpoints are all called ``model``, so the folders above count too.
    """
    name = "-".join(Path(checkpoint).resolve().parts[-3:]) if Path(checkpoint).is_dir() else str(checkpoint).replace("/", "-")
    return Path(output or Path("runs") / verb / name)


def stage1_model(checkpoint: str | Path) -> str | None:
    """The dense model that the stages after Stage I began with, for a checkpoint in a run's folder; None if it is not there."""
    run = Path(checkpoint).resolve().parent.parent
    try:
        recipe = Recipe.load(run / "recipe.json")
    except (OSError, ValueError):  # no run's folder, or a run of another version
        return None
    found = stage_folder(run, 1).model if 1 in recipe.stages else Path(recipe.model)
    return str(found) if found.is_dir() else None


def can_resume(output: str | Path) -> bool:
    """Whether a run folder holds a checkpoint or a finished stage."""
    folders = [stage_folder(output, stage) for stage in STAGES]
    return any(folder.model.is_dir() or folder.last_checkpoint() for folder in folders)


def check_output(recipe: Recipe, resume: bool) -> None:
    """Makes sure that a run may use its output folder.

    Without ``resume`` it must be new, or hold a run that got to no checkpoint; with ``resume`` it must hold this recipe's run.

    Raises:
        OptionError: ``output`` is a file, or a folder that this run may not use.
    """
    if not is_main_process():  # it would meet the folder that the main process makes
        return
    output, written = Path(recipe.output), Path(recipe.output) / "recipe.json"
    check_output_folder(output)
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not written.is_file():
        raise OptionError("output", f"{output} is not empty and holds no recipe.json, so it is no run's folder; name another.")
    if not resume:
        if can_resume(output) or (output / "report.md").is_file():
            raise OptionError(
                "output", f"{output} holds a run already. Add `resume=True` to go on with it, or name another folder."
            )
        return
    changed = recipe.differences(Recipe.load(written))
    if changed:
        remedy = "Name another folder." if can_resume(output) else "It has no checkpoint yet: leave out `resume` to start anew."
        raise OptionError("output", f"{output} holds a run of another recipe ({'; '.join(changed)}). {remedy}")


def check_paths(recipe: Recipe, resume: bool) -> None:
    """Refuses at once, before anything slow is imported, what plainly is not there, or is there and must not be.

    Raises:
        OptionError: the output or the folder of images.
        ValueError: the model or the data; the message names what is not there.
    """
    check_output(recipe, resume)
    refuse_missing(recipe.model)
    for stage in recipe.stages:
        refuse_missing(split_name(recipe.stage(stage).data or recipe.data)[0])
    if recipe.image_root is not None:
        check_folder("image_root", recipe.image_root)


def clear(output: str | Path) -> None:
    """Removes what a run left that got to no checkpoint, so that its folder can be used anew."""
    for name in ("metrics.jsonl", "skipped_records.txt"):
        (Path(output) / name).unlink(missing_ok=True)
    for stage in STAGES:
        shutil.rmtree(stage_folder(output, stage).path, ignore_errors=True)
