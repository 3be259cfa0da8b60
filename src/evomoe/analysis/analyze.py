"""``evomoe analyze``: a sparse model's experts and routers in numbers, with a report and pictures."""

import json
import math
from datetime import date
from typing import Any

import torch

from evomoe.analysis.evaluation_mode import language_loss
from evomoe.analysis.image_swap import changed_by_pictures
from evomoe.analysis.interventions import each_alone, shuffle_test
from evomoe.analysis.meanings import MEANINGS
from evomoe.analysis.probe import Probe
from evomoe.analysis.probe_options import ProbeOptions
from evomoe.analysis.recording import MODALITIES
from evomoe.analysis.routing import RoutingStatistics, routing_statistics
from evomoe.analysis.routing_report import routing_sections
from evomoe.analysis.symmetry import symmetry_gradients
from evomoe.analysis.task_vectors import task_vector_cosines
from evomoe.data.conversations import ConversationDataset
from evomoe.data.records import load_records
from evomoe.model.configuration import EvoMoEConfig
from evomoe.model.loading import load_config, load_model, load_processor, takes_pictures
from evomoe.model.sparse_model import SparseModel, is_sparse
from evomoe.model.structure import image_token_ids
from evomoe.recipe.run_folder import results_folder, stage1_model, template_options_of
from evomoe.support.device import best_device, moved
from evomoe.support.errors import OptionError
from evomoe.support.files import write_text
from evomoe.support.names import check_output_folder
from evomoe.support.text import markdown_table
from evomoe.support.version import __version__


def analyze(checkpoint: str, options: ProbeOptions, output: str | None = None, stage1: str | None = None) -> str:
    """Measures a sparse model on a probe, and writes numbers.json and report.md with pictures.

    Args:
        checkpoint: folder or hub name of the sparse model.
        options: the probe.
        output: folder for the results; runs/analyze/NAME unless named.
        stage1: the dense model that Stage II began with, for task vectors; found if the checkpoint lies in a run's folder.

    Returns:
        The averages as a table in Markdown, and where the report is.

    Raises:
        ValueError: the model is dense, it takes pictures and the probe has none, or an option is wrong.
    """
    options.check()
    config = check_sparse(checkpoint, options)
    probe = open_probe(checkpoint, config, options)
    if config.moe.expert_share == 1:  # else the experts are parts of the dense model's FFNs, of another shape
        stage1 = stage1 or stage1_model(checkpoint)
    if stage1:
        kind = load_config(stage1, options.trust_remote_code)
        if isinstance(kind, EvoMoEConfig):
            raise OptionError("stage1", f"{stage1} is a sparse model; name the dense one that the experts came from.")
        if kind.model_type != (base := config.moe.base_model_type):
            raise OptionError(
                "stage1", f"{stage1} is of type '{kind.model_type}', and the experts came from a '{base}'; name that."
            )
    folder = results_folder("analyze", checkpoint, output)
    check_output_folder(folder)
    model = load_sparse(checkpoint, options)
    try:
        statistics, losses = measure(model, probe), measure_losses(model, probe)
    except torch.OutOfMemoryError as error:
        raise OptionError("batch_size", f"out of memory with {options.batch_size} records at once; take fewer.") from error
    if stage1:
        dense = load_model(stage1, options.dtype, options.trust_remote_code)
        statistics = statistics.with_added(task_vector_cosine=task_vector_cosines(model, dense))
    folder.mkdir(parents=True, exist_ok=True)
    about = {"checkpoint": checkpoint, "stage1": stage1, "probe": probe.name, "model": describe(model)}
    written = about | numbers(statistics) | {"language_loss": losses, "evomoe": __version__, "date": date.today().isoformat()}
    write_text(folder / "numbers.json", json.dumps(written, indent=1) + "\n")
    parts = [f"# {checkpoint}", f"{describe(model)}. Measured on {probe.name}.", _losses_table(losses), _LOSSES_MEANING]
    parts += ["## Routing", *routing_sections(folder, statistics)]
    write_text(folder / "report.md", "\n\n".join(parts) + "\n")
    means = statistics.means()
    rows = [[MEANINGS[name].heading, _shown(means[name])] for name in MEANINGS if name in means]
    return (
        f"{markdown_table([f'mean over {len(statistics.layers)} MoE layers', 'value'], rows)}\n\nReport: {folder / 'report.md'}"
    )


def measure(model: SparseModel, probe: Probe) -> RoutingStatistics:
    """All numbers of ``evomoe.analysis.meanings`` but for the task vectors', which need the dense model of Stage I."""
    statistics = routing_statistics(model, probe.unlabelled(model))
    changed = changed_by_pictures(model, probe.swapped(model))
    added = {f"changed_{name}": by_layer for name, by_layer in changed.items() if by_layer}
    return statistics.with_added(symmetry_gradient=symmetry_gradients(model, probe.batches(model)), **added)


def measure_losses(model: SparseModel, probe: Probe) -> dict[str, Any]:
    """The language loss on the probe with the model's own routers, with each of eight shuffles, with each expert alone."""

    def loss(model: SparseModel) -> float:
        return language_loss(model, probe.batches(model))

    own, shuffled = shuffle_test(model, loss)
    return {"own": own, "shuffled": shuffled, "alone": each_alone(model, loss)}


def numbers(statistics: RoutingStatistics) -> dict[str, Any]:
    """The statistics for a JSON file: averages, every layer, loads, and what the numbers mean; None where one is not defined."""
    metrics, load_LME = statistics.metrics(), statistics.load_LME
    layers = {
        str(layer): {name: _finite(values[i]) for name, values in metrics.items()}
        | {
            "load": {name: load_LME[i, m].tolist() for m, name in enumerate(MODALITIES)},
            "slots": {name: int(statistics.counts_LME[i, m].sum()) for m, name in enumerate(MODALITIES)},
            "logit_overlap_by_expert": [_finite(value) for value in statistics.overlap_LE[i].tolist()],
        }
        for i, layer in enumerate(statistics.layers)
    }
    return {
        "mean": {name: _finite(value) for name, value in statistics.means().items()},
        "layers": layers,
        "meanings": {name: MEANINGS[name].text for name in metrics},
    }


def check_sparse(checkpoint: str, options: ProbeOptions) -> EvoMoEConfig:
    """The configuration of a sparse model.

    Raises:
        ValueError: the model is dense.
    """
    config = load_config(checkpoint, options.trust_remote_code)
    if not isinstance(config, EvoMoEConfig):
        raise ValueError(
            f"{checkpoint} is a dense model and has no routers: name a sparse one, such as a run's stage3_routing/model, or make "
            "one with `evomoe upcycle`."
        )
    return config


def check_takes_pictures(checkpoint: str, options: ProbeOptions) -> EvoMoEConfig:
    """The configuration of a sparse model that takes pictures.

    Raises:
        ValueError: the model is dense, or text-only.
    """
    config = check_sparse(checkpoint, options)
    if not takes_pictures(config):
        raise ValueError(
            f"{checkpoint} is text-only, and this figure is about pictures too: name a model made from a vision-language model."
        )
    return config


def open_probe(checkpoint: str, config: EvoMoEConfig, options: ProbeOptions) -> Probe:
    """The probe, as the checkpoint's processor makes it.

    Raises:
        ValueError: the data cannot be read, or no record has a picture for a model that takes them.
    """
    records = load_records(options.data, options.image_root, on_bad_record=options.on_bad_record)
    processor = load_processor(checkpoint, options.trust_remote_code)
    dataset = ConversationDataset(
        records,
        processor,
        options.max_length,
        on_bad_record=options.on_bad_record,
        image_aspect=options.image_aspect,
        template_options=template_options_of(checkpoint),
    )
    probe = Probe(dataset, options.data, image_token_ids(config), options.records, options.batch_size)
    if takes_pictures(config):
        probe.check_pictures()
    return probe


def load_sparse(checkpoint: str, options: ProbeOptions) -> SparseModel:
    """The model, on the accelerator if there is one; nothing in it trains."""
    model = moved(load_model(checkpoint, options.dtype, options.trust_remote_code).requires_grad_(False), best_device())
    assert is_sparse(model)
    model.pack_experts()
    return model


def describe(model: SparseModel) -> str:
    """What a sparse model is, in one line."""
    moe = model.config.moe
    return f"{type(model).__name__}, {moe.num_experts} experts ({moe.origin}), {moe.num_experts_per_tok} per token, router {moe.router_told}"


_LOSSES_MEANING = (
    "Language loss on the probe, in nats per token: with the model's own routers, with their outputs shuffled, with one expert "
    "for all tokens. If shuffles change nothing, it does not matter which expert a token gets."
)


def _losses_table(losses: dict[str, Any]) -> str:
    shuffled = losses["shuffled"]
    columns = [
        "own routers",
        f"{len(shuffled)} shuffles, mean",
        "least",
        "most",
        *(f"expert {n + 1} alone" for n in range(len(losses["alone"]))),
    ]
    values = [losses["own"], sum(shuffled) / len(shuffled), min(shuffled), max(shuffled), *losses["alone"]]
    return markdown_table(["", *columns], [["language loss", *(f"{value:.4f}" for value in values)]])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _shown(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.3f}"
