"""Stage I, understanding warm-up: the language model and the projector train; the vision tower is frozen.

Implements: Section 3.1 (Stage I), Figure 2 (a).
"""

from pathlib import Path

from evomoe.data.conversations import ConversationDataset
from evomoe.recipe.run_folder import StageFolder
from evomoe.training.checked_run import CheckedRun
from evomoe.training.stage import train


def train_stage(run: CheckedRun, source: Path | str, folder: StageFolder, dataset: ConversationDataset) -> None:
    """Dense model in ``source`` -> instruction-tuned dense model in ``folder``."""
    train(run, 1, run.load(source), folder, dataset)
