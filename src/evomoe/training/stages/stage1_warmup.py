"""Stage I, understanding warm-up: the language model and the projector train; the vision tower is frozen.

Implements: Section 3.1 (Stage I), Figure 2 (a).
"""

from pathlib import Path

from evomoe.data.conversations import ConversationDataset
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.run_folder import StageFolder
from evomoe.training.stage import load_dense, train


def run(recipe: Recipe, source: Path | str, folder: StageFolder, dataset: ConversationDataset) -> None:
    """Dense model in ``source`` -> instruction-tuned dense model in ``folder``."""
    train(recipe, 1, load_dense(recipe, source), folder, dataset)
