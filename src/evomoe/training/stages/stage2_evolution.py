"""Stage II, expert evolution: the FFN of the MoE layers trains, and experts 2..E evolve from it.

Implements: Section 3.1 (Stage II), Figure 2 (b).

The model stays dense. What the stage leaves is the dense model, ``evolved_experts.safetensors`` and ``diversity.json``.
"""

import json
from pathlib import Path

from evomoe.data.conversations import ConversationDataset
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.run_folder import StageFolder
from evomoe.support.files import write_tensors, write_text
from evomoe.training.collapse import diversity_report
from evomoe.training.stage import load_dense, train

EXPERTS = "evolved_experts.safetensors"


def run(recipe: Recipe, source: Path | str, folder: StageFolder, dataset: ConversationDataset) -> None:
    """Dense model in ``source`` -> dense model, evolved experts and their diversity report in ``folder``."""

    def finish(trainer) -> None:
        evolution = trainer.evolution.experts
        tensors, report = evolution.expert_tensors(), diversity_report(evolution)
        if trainer.is_world_process_zero():
            write_tensors(folder.path / EXPERTS, tensors)
            write_text(folder.path / "diversity.json", json.dumps(report, indent=2) + "\n")

    train(recipe, 2, load_dense(recipe, source), folder, dataset, finish, evolution=recipe.evolution)
