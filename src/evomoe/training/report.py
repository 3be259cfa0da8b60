"""report.md of a run of ``evomoe train``: its probe is the run's own training records."""

from pathlib import Path

from evomoe.analysis.probe import Probe
from evomoe.analysis.report import ReportInput, write_report
from evomoe.analysis.routing import routing_statistics
from evomoe.data.conversations import ConversationDataset
from evomoe.model.accounting import count_parameters
from evomoe.model.sparse_model import is_sparse
from evomoe.model.structure import image_token_ids
from evomoe.recipe.options import STAGES
from evomoe.support.device import best_device, moved
from evomoe.training.checked_run import CheckedRun

PROBE_RECORDS = 64


def report_run(run: CheckedRun, final: Path, dataset: ConversationDataset) -> Path:
    """Writes report.md into the run folder.

    Args:
        run: the run, whose stages are done.
        final: folder of the last stage's model.
        dataset: what the last stage trained on.
    """
    recipe, counts = run.recipe, {}
    for stage in recipe.stages:
        counts[f"stage {stage} ({STAGES[stage]})"] = count_parameters(run.prepared(stage))
    statistics, probe, origin = None, "", ""
    if run.starts_sparse or 3 in recipe.stages:
        model = moved(run.load(final), best_device())
        assert is_sparse(model)
        looked_at = Probe(dataset, "the last stage's training data", image_token_ids(model.config), PROBE_RECORDS)
        statistics, probe = routing_statistics(model, looked_at.unlabelled(model)), looked_at.name
        origin = model.config.moe.origin
    return write_report(
        run.folder, recipe, ReportInput(counts, statistics, probe, notes="\n\n".join(dataset.notes), origin=origin)
    )
