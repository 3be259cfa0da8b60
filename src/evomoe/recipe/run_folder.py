"""A run's folder: the names of what lies in it, and whether a run may start or go on there. Needs neither torch nor transformers."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from evomoe.recipe.checkpoint import checkpoints, newest_whole, step_of
from evomoe.recipe.options import STAGES
from evomoe.recipe.recipe import Recipe
from evomoe.support.errors import OptionError
from evomoe.support.files import naming
from evomoe.support.names import check_folder, check_output_folder, refuse_missing, split_name
from evomoe.support.parse_json import parse_json
from evomoe.support.processes import is_main_process, process_count

logger = logging.getLogger(__name__)

Resume = bool | Literal["if begun", "known"]
"""Whether a run goes on in its folder.

False: it starts. True: it goes on with the same recipe's run. "if begun": it goes on where one has begun, and starts in any other
folder, which may hold other files. "known" is "if begun" of a caller who knows that what has begun there is this run.
"""


PATIENCE = 10.0
"""Seconds to wait for a lock: a killed command's own processes, such as those that read pictures, end a little later."""


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

    @property
    def start(self) -> Path:
        """The FFNs of the MoE layers as Stage II found them; it goes with the checkpoints."""
        return self.checkpoints / "start.safetensors"

    @property
    def experts(self) -> Path:
        """The experts that Stage II evolved."""
        return self.path / "evolved_experts.safetensors"

    @property
    def diversity(self) -> Path:
        """How far they are from expert 1."""
        return self.path / "diversity.json"

    @property
    def adapter(self) -> Path:
        """The adapters that were merged into ``model``, as peft reads them."""
        return self.path / "adapter"

    @property
    def seconds(self) -> Path:
        """How long the stage took so far."""
        return self.path / "seconds.txt"

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that is whole."""
        return newest_whole(self.checkpoints)[0]

    def last_step(self) -> int:
        """The step of the newest checkpoint that is whole; 0 without one."""
        checkpoint = self.last_checkpoint()
        return step_of(checkpoint) if checkpoint else 0

    def resume_from(self) -> Path | None:
        """The checkpoint that training goes on from, with a warning of newer ones that are not whole; None if there are none at all.

        Raises:
            ValueError: there are some, and none is whole.
        """
        checkpoint, faults = newest_whole(self.checkpoints)
        if faults and checkpoint is None:
            raise ValueError(
                f"{self.checkpoints}: no checkpoint is whole ({'; '.join(faults)}). Put whole ones back, or remove this folder to begin "
                "the stage anew."
            )
        if faults and checkpoint:
            logger.warning(
                "%s: not whole, and left aside: %s. Going on from %s.", self.checkpoints, "; ".join(faults), checkpoint.name
            )
        return checkpoint


class RunFolder:
    """The folder of one run of ``evomoe train``.

    Args:
        path: the folder, whether it is there or not.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.json"

    @property
    def identity(self) -> Path:
        """What the run is beside its recipe: content of weights and data, processes."""
        return self.path / "identity.json"

    @property
    def lock(self) -> Path:
        """Held by the command that is at work here."""
        return self.path / ".lock"

    @property
    def metrics(self) -> Path:
        """Every value that the stages logged, a JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def report(self) -> Path:
        return self.path / "report.md"

    @property
    def skipped_records(self) -> Path:
        """The bad records that were left out."""
        return self.path / "skipped_records.txt"

    @property
    def changes(self) -> Path:
        """What a run that went on did otherwise than before."""
        return self.path / "changes.txt"

    def stage(self, number: int, label: str = "") -> StageFolder:
        """The folder of a stage, e.g. ``stage2_evolution``."""
        return StageFolder(self.path / f"stage{number}_{STAGES[number]}", label)

    def logged(self) -> list[dict[str, Any]]:
        """What was logged so far."""
        lines = self.metrics.read_text(encoding="utf-8").splitlines() if self.metrics.is_file() else []
        return [parse_json(line, str(self.metrics), number) for number, line in enumerate(lines, 1)]

    def processes(self) -> int:
        """How many processes shared the run when it was last at work; as many as now if that was not written down."""
        if not self.identity.is_file():
            return process_count()
        return parse_json(self.identity.read_text(encoding="utf-8"), str(self.identity)).get("processes", process_count())

    def has_begun(self) -> bool:
        """Whether a run has begun here."""
        return self.recipe.is_file()

    def can_resume(self) -> bool:
        """Whether there is a checkpoint or a finished stage."""
        return any(folder.model.is_dir() or checkpoints(folder.checkpoints) for folder in map(self.stage, STAGES))

    def check(self, recipe: Recipe, resume: Resume) -> None:
        """Makes sure that a run may use the folder.

        Without ``resume`` it must be new, or hold a run that got to no checkpoint; with ``resume`` it must hold this recipe's
        run; with "if begun" what has begun there must be this recipe's run.

        Raises:
            OptionError: ``output`` is a file, or a folder that this run may not use; ``resume`` is none of ``Resume``.
        """
        if resume not in (False, True, "if begun", "known"):
            raise OptionError("resume", f"{resume!r} must be True, False or 'if begun'.")
        if not is_main_process():  # it would meet the folder that the main process makes
            return
        output = self.path
        check_output_folder(output)
        begun = {self.lock.name, self.identity.name, f"{self.identity.name}.partial", f"{self.recipe.name}.partial"}
        # These alone are left by a command that was killed before it had written its recipe.
        if resume == "known" or not output.is_dir() or {path.name for path in output.iterdir()} <= begun:
            return
        if not self.has_begun():
            if resume == "if begun" and not self.can_resume():
                return
            raise OptionError(
                "output", f"{output} is not empty and holds no recipe.json, so it is not the folder of a run; name another."
            )
        if resume:
            self.check_same(recipe)
        elif self.can_resume() or self.report.is_file():
            raise OptionError(
                "output", f"{output} holds a run already. Add `resume=True` to go on with it, or name another folder."
            )

    def check_same(self, recipe: Recipe) -> None:
        """Raises OptionError if the run that has begun here is one of another recipe."""
        began = Recipe.load(self.recipe)
        changed = recipe.with_steps_of(began, process_count(), self.processes()).differences(began)
        if changed:
            anew = "It has no checkpoint yet: leave out `resume` to start anew."
            remedy = "Name another folder." if self.can_resume() else anew
            raise OptionError("output", f"{self.path} holds a run of another recipe ({'; '.join(changed)}). {remedy}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The folder belongs to this command alone. The system lets go of it when the process ends, however that happens.

        Raises:
            OptionError: another command is at work in it.
        """
        if self.lock.is_symlink():
            self.lock.unlink()
        lock = FileLock(self.lock)
        with naming(self.lock):
            try:
                lock.acquire(timeout=PATIENCE)
            except Timeout:
                raise OptionError(
                    "output", f"another command is at work in {self.path}; wait until it has ended, or name another folder."
                ) from None
        try:
            yield
        finally:
            lock.release()

    def clear(self) -> None:
        """Removes what a run left that got to no checkpoint, so that the folder can be used anew."""
        for file in (self.metrics, self.skipped_records, self.changes):
            file.unlink(missing_ok=True)
        for stage in STAGES:
            shutil.rmtree(self.stage(stage).path, ignore_errors=True)


def results_folder(verb: str, checkpoint: str | Path, output: str | None = None) -> Path:
    """Where a verb's results on a checkpoint go: ``output``, or runs/VERB/NAME, NAME from the checkpoint's path.

    Trained checkpoints are all called ``model``, so the folders above count too.
    """
    name = "-".join(Path(checkpoint).resolve().parts[-3:]) if Path(checkpoint).is_dir() else str(checkpoint).replace("/", "-")
    return Path(output or Path("runs") / verb / name)


def stage1_model(checkpoint: str | Path) -> str | None:
    """The dense model that the stages after Stage I began with, for a checkpoint in a run's folder; None if it is not there."""
    run, recipe = _run_of(checkpoint)
    if recipe is None:
        return None
    found = run.stage(1).model if 1 in recipe.stages else Path(recipe.model)
    return str(found) if found.is_dir() else None


def template_options_of(checkpoint: str | Path) -> dict[str, Any]:
    """The arguments of the chat template that a checkpoint in a run's folder was trained with; none for any other."""
    _, recipe = _run_of(checkpoint)
    return dict(recipe.template_options) if recipe else {}


def _run_of(checkpoint: str | Path) -> tuple[RunFolder, Recipe | None]:
    run = RunFolder(Path(checkpoint).resolve().parent.parent)
    try:
        return run, Recipe.load(run.recipe)
    except (OSError, ValueError):  # no run's folder, or a run of another version
        return run, None


def check_paths(recipe: Recipe, resume: Resume) -> None:
    """Refuses at once, before anything slow is imported, what plainly is not there, or is there and must not be.

    Raises:
        OptionError: the output or the folder of images.
        ValueError: the model or the data; the message names what is not there.
    """
    RunFolder(recipe.output).check(recipe, resume)
    refuse_missing(recipe.model)
    for stage in recipe.stages:
        for source in recipe.sources_of(stage):
            refuse_missing(split_name(source.name)[0])
            if source.image_root is not None:
                check_folder(
                    "image_root" if recipe.stage(stage).image_root is None else f"stage{stage}.image_root", source.image_root
                )
