"""What a stage's steps take on this machine: a few are taken, of a model that is thrown away."""

import statistics
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from evomoe.conversion.upcycling import upcycle
from evomoe.data.conversations import ConversationDataset
from evomoe.recipe.run_folder import StageFolder
from evomoe.support.device import best_device
from evomoe.training.callbacks import EvolutionCallback
from evomoe.training.checked_run import CheckedRun
from evomoe.training.stage import train


@dataclass(frozen=True)
class Measured:
    """What steps took.

    Attributes:
        seconds: of a step, the median.
        steps: how many were measured.
        peak: most bytes of the GPU's memory in use at any one time; None on a CPU.
    """

    seconds: float
    steps: int
    peak: int | None


class _Clock(TrainerCallback):
    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if best_device().type != "cpu":
            torch.accelerator.synchronize()
        self.ends.append(time.monotonic())


class _Enough(Exception):
    """The steps are taken, and nothing is to be kept."""


def measure(run: CheckedRun, stage: int, dataset: ConversationDataset, steps: int) -> Measured:
    """Takes one step, which starts everything up, and then so many that are measured.

    Stage III begins with copies of the FFN as experts, whose steps take as long as any others.
    """
    recipe, clock, cuda = run.recipe, _Clock(), best_device().type == "cuda"
    settings = recipe.stage(stage)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        own = StageFolder(Path(folder) / "stage", "measuring")
        short = replace(settings, steps=steps + 1, trainer=settings.trainer | {"save_strategy": "no"})
        if recipe.streaming:  # what earlier stages take is there only once they have trained
            short = replace(short, seen_records=0)
        measured = replace(run, recipe=recipe.but(output=folder, **{f"stage{stage}": short}))
        fields: dict[str, Any] = {"callbacks": [clock]}
        if stage == 2:
            fields["evolution"] = EvolutionCallback(recipe.evolution, run.moe.moe_layers, own.start)
        model = run.load(recipe.model)
        if stage == 3 and not run.starts_sparse:
            model = upcycle(model, moe_layers=recipe.placement(), seed=recipe.seed, **asdict(recipe.moe))

        def stop(trainer: object) -> None:
            raise _Enough

        with suppress(_Enough):
            train(measured, stage, model, own, dataset, finish=stop, **fields)
    passed = [after - before for before, after in zip(clock.ends, clock.ends[1:], strict=False)]
    return Measured(statistics.median(passed), len(passed), torch.cuda.max_memory_allocated() if cuda else None)
