"""report.md of a run of ``evomoe train``: its probe is the run's own training records."""

from pathlib import Path

from evomoe.analysis.probe import Probe
from evomoe.analysis.report import ReportInput, write_report
from evomoe.analysis.routing import routing_statistics
from evomoe.data.conversations import ConversationDataset
from evomoe.model.accounting import count_parameters
from evomoe.model.loading import load_model
from evomoe.model.sparse_model import EvoMoEMixin
from evomoe.model.structure import image_token_ids, text_config
from evomoe.recipe.options import STAGES
from evomoe.recipe.placement import moe_layers
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.run_folder import stage_folder
from evomoe.support.device import best_device
from evomoe.training.trainable import set_trainable

PROBE_RECORDS = 64


def report_run(recipe: Recipe, final: Path, dataset: ConversationDataset) -> Path:
    """Writes report.md into the run folder.

    Args:
        recipe: the run.
        final: folder of the last stage's model.
        dataset: what the last stage trained on.
    """
    counts = {}
    for stage in recipe.stages:
        model = load_model(stage_folder(recipe.output, stage).model, recipe.dtype, recipe.trust_remote_code)
        layers = moe_layers(recipe.placement(), text_config(model.config).num_hidden_layers)
        trained = set_trainable(model, recipe.stage(stage).train, layers)
        counts[f"stage {stage} ({STAGES[stage]})"] = count_parameters(model, trained)
    statistics, probe, origin = None, "", ""
    model = load_model(final, recipe.dtype, recipe.trust_remote_code)
    if isinstance(model, EvoMoEMixin):
        looked_at = Probe(dataset, "the last stage's training data", image_token_ids(model.config), PROBE_RECORDS)
        model = model.to(best_device())
        statistics, probe = routing_statistics(model, looked_at.unlabelled(model)), looked_at.name
        origin = model.config.moe.origin
    return write_report(Path(recipe.output), recipe, ReportInput(counts, statistics, probe, origin=origin))
