"""report.md of a run of ``evomoe train``: its probe is the run's own training records."""

from pathlib import Path

import torch

from evomoe.accounting import count_parameters
from evomoe.analysis.report import ReportInput, write_report
from evomoe.analysis.routing import routing_statistics
from evomoe.data.conversations import Collator, ConversationDataset
from evomoe.loading import load_model
from evomoe.modeling import EvoMoEMixin
from evomoe.placement import moe_layers
from evomoe.recipe import STAGES, Recipe
from evomoe.run_folder import stage_folder
from evomoe.stages.trainable import set_trainable
from evomoe.structure import text_config

PROBE_RECORDS, BATCH = 64, 8


def report_run(recipe: Recipe, final: Path, dataset: ConversationDataset) -> Path:
    """Writes report.md into the run folder.

    Args:
        recipe: the run.
        final: folder of the last stage's model.
        dataset: what the last stage trained on.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    counts = {}
    for stage in recipe.stages:
        model = load_model(stage_folder(recipe.output, stage).model, recipe.dtype, recipe.trust_remote_code)
        layers = moe_layers(recipe.placement(), text_config(model.config).num_hidden_layers)
        trained = set_trainable(model, recipe.stage(stage).train, layers)
        counts[f"stage {stage} ({STAGES[stage]})"] = count_parameters(model, trained)
    statistics, probe = None, ""
    model = load_model(final, recipe.dtype, recipe.trust_remote_code)
    if isinstance(model, EvoMoEMixin):
        collate, items = Collator(dataset.processor), [dataset[i] for i in range(min(PROBE_RECORDS, len(dataset)))]
        batches = [collate(items[i : i + BATCH]) for i in range(0, len(items), BATCH)]
        moved = ({name: tensor.to(device) for name, tensor in batch.items() if name != "labels"} for batch in batches)
        statistics = routing_statistics(model.to(device), moved)
        probe = f"the first {len(items)} training records"
    return write_report(Path(recipe.output), recipe, ReportInput(counts, statistics, probe))
