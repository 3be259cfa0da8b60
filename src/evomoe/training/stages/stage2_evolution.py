"""Stage II, expert evolution: the FFN of the MoE layers trains, and experts 2..E evolve from it.

Implements: Section 3.1 (Stage II), Figure 2 (b).

The model stays dense. What the stage leaves is the dense model, its evolved experts, and how far they are from expert 1.
"""

import json
from pathlib import Path

from evomoe.data.conversations import ConversationDataset
from evomoe.recipe.run_folder import StageFolder
from evomoe.support.files import write_tensors, write_text
from evomoe.training.callbacks import EvolutionCallback
from evomoe.training.checked_run import CheckedRun
from evomoe.training.collapse import diversity_report
from evomoe.training.stage import train
from evomoe.training.trainer import EvoMoETrainer


def train_stage(run: CheckedRun, source: Path | str, folder: StageFolder, dataset: ConversationDataset) -> None:
    """Dense model in ``source`` -> dense model, evolved experts and their diversity report in ``folder``."""

    evolution = EvolutionCallback(run.recipe.evolution, run.moe.moe_layers, folder.start)

    def finish(trainer: EvoMoETrainer) -> None:
        tensors, report = trainer.evolved.expert_tensors(), diversity_report(trainer.evolved, evolution.start)
        if trainer.is_world_process_zero():
            write_tensors(folder.experts, tensors)
            write_text(folder.diversity, json.dumps(report, indent=2) + "\n")

    train(run, 2, run.load(source), folder, dataset, finish, evolution=evolution)
