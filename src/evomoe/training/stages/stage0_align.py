"""Stage 0, alignment: only the projector trains, on captions, before the paper's three stages.

Needed by those who join a language model and a vision tower of their own (``evomoe compose``).
"""

from pathlib import Path

from evomoe.data.conversations import ConversationDataset
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.run_folder import StageFolder
from evomoe.training.stage import load_dense, train


def run(recipe: Recipe, source: Path | str, folder: StageFolder, dataset: ConversationDataset) -> None:
    """Dense model in ``source`` -> dense model with an aligned projector in ``folder``."""
    train(recipe, 0, load_dense(recipe, source), folder, dataset)
