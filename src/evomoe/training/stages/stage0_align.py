"""Stage 0, alignment: only the projector trains, on captions, before the paper's three stages.

Needed by those who join a language model and a vision tower of their own (``evomoe compose``).
"""

from pathlib import Path

from evomoe.data.conversations import ConversationDataset
from evomoe.recipe.run_folder import StageFolder
from evomoe.training.checked_run import CheckedRun
from evomoe.training.stage import train


def train_stage(run: CheckedRun, source: Path | str, folder: StageFolder, dataset: ConversationDataset) -> None:
    """Dense model in ``source`` -> dense model with an aligned projector in ``folder``."""
    train(run, 0, run.load(source), folder, dataset)
