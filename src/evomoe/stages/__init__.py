"""The stages of a run, in the paper's order, from one folder on disk to the next."""

import time
from pathlib import Path

from evomoe.files import write_text
from evomoe.recipe import STAGES, Recipe
from evomoe.stages import stage0_align, stage1_warmup, stage2_evolution, stage3_routing
from evomoe.stages.common import StageFolder

RUNNERS = {0: stage0_align.run, 1: stage1_warmup.run, 2: stage2_evolution.run, 3: stage3_routing.run}


def stage_folder(output: str | Path, stage: int) -> StageFolder:
    """The folder of a stage inside a run folder, e.g. ``stage2_evolution``."""
    return StageFolder(Path(output) / f"stage{stage}_{STAGES[stage]}")


def open_run(recipe: Recipe, resume: bool) -> None:
    """Creates the run folder, or checks that an existing one holds this recipe's unfinished run.

    Raises:
        ValueError: the folder exists and ``resume`` is off, or holds another run.
    """
    output, written = Path(recipe.output), Path(recipe.output) / "recipe.json"
    if output.exists() and not output.is_dir():
        raise ValueError(f"output: {output} is a file; name a folder.")
    if output.is_dir() and any(output.iterdir()):
        if not resume:
            raise ValueError(
                f"output: {output} exists and is not empty. Add --resume to go on with the run in it, or name another."
            )
        if not written.is_file():
            raise ValueError(f"output: {output} holds no recipe.json, so there is no run to resume; name another folder.")
        changed = recipe.differences(Recipe.load(written))
        if changed:
            raise ValueError(f"output: {output} holds a run of another recipe ({'; '.join(changed)}). Name another folder.")
        return
    output.mkdir(parents=True, exist_ok=True)
    recipe.save(written)


def run(recipe: Recipe, resume: bool = False) -> Path:
    """Runs the recipe's stages one after the other, skipping those that are done.

    Returns:
        The folder of the last stage's model.
    """
    open_run(recipe, resume)
    source: Path | str = recipe.model
    for stage in recipe.stages:
        folder = stage_folder(recipe.output, stage)
        if not folder.model.is_dir():
            begin = time.monotonic()
            extra = {}
            if stage == 3 and 2 in recipe.stages:
                extra["stage2"] = stage_folder(recipe.output, 2)
            RUNNERS[stage](recipe, source, folder, **extra)
            write_text(folder.path / "seconds.txt", f"{time.monotonic() - begin:.1f}\n")
        source = folder.model
    return Path(source)


__all__ = ["RUNNERS", "StageFolder", "open_run", "run", "stage_folder"]
