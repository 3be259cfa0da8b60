"""report.md of a run: what was trained, how it scored, what experts and routers did, with pictures."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev, variance

from evomoe.analysis.plots import plot_distances
from evomoe.analysis.recording import LARGE_SCORE, SMALLER_SCORES
from evomoe.analysis.routing import RoutingStatistics
from evomoe.analysis.routing_report import picture, routing_sections
from evomoe.model.accounting import ParameterCounts
from evomoe.recipe.data_mix import data_title
from evomoe.recipe.options import STAGES
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.run_folder import RunFolder
from evomoe.support.files import write_text
from evomoe.support.text import counted, markdown_table


@dataclass(frozen=True)
class ReportInput:
    """What a report tells beside what lies in the run folder.

    Attributes:
        parameters: counts of each model or stage, by name.
        statistics: of the sparse model's routers; None if the run made none.
        probe: what the statistics were measured on.
        scores: a Markdown table, or nothing.
        notes: paragraphs for the top.
        origin: where the experts came from; by the recipe's ``expert_init`` if empty.
    """

    parameters: dict[str, ParameterCounts]
    statistics: RoutingStatistics | None
    probe: str
    scores: str = ""
    notes: str = ""
    origin: str = ""


def write_report(run: RunFolder, recipe: Recipe, given: ReportInput) -> Path:
    """Writes report.md and its pictures into the run folder; returns its path."""
    folder, metrics = run.path, run.logged()
    parts = ["# EvoMoE run", *_alarms(recipe, metrics), given.notes, _settings(recipe, given.origin or recipe.expert_init)]
    if given.scores:
        parts += ["## Scores", given.scores]
    parts += ["## Training", _training(run, recipe, metrics), "## Parameters", _parameters(given.parameters)]
    parts += _evolution(run, metrics)
    if given.statistics is not None:
        measured = f"Measured on {given.probe}. docs/concepts.md, under What is measured, says more."
        parts += ["## Routing", measured, *routing_sections(folder, given.statistics)]
    write_text(run.report, "\n\n".join(part for part in parts if part) + "\n")
    return run.report


def _alarms(recipe: Recipe, metrics: list[dict]) -> list[str]:
    """What a reader must know first: stages that did not learn."""
    alarms = []
    for stage in recipe.stages:
        logged = [entry for entry in metrics if entry["stage"] == STAGES[stage] and "loss" in entry]
        losses = [entry["loss"] for entry in logged]
        if not all(math.isfinite(value) for entry in logged for value in (entry["loss"], entry.get("grad_norm", 0.0))):
            what = "has losses or gradients that are not finite: its model is of no use"
        elif rise := _rise(losses):
            what = f"ended at a higher loss than it began with: {rise}"
        else:
            continue
        alarms.append(f"**Stage {stage} ({STAGES[stage]}) {what}.** Try a lower `stage{stage}.learning_rate`.")
    scores = [entry["largest_score"] for entry in metrics if "largest_score" in entry]
    if scores and scores[-1] > LARGE_SCORE:
        alarms.append(
            f"**The routers' scores have reached {scores[-1]:.4g}.** Beyond {LARGE_SCORE:.0f} a router learns little. Try {SMALLER_SCORES}."
        )
    return alarms


def _rise(losses: Sequence[float]) -> str:
    """The losses of the last tenth of a stage and of its first, if they rose by more than their own spread; else nothing.

    One line of a log is a few batches, so that five at least stand for either end.
    """
    first, last = _ends(losses)
    tenth = len(first)
    if len(losses) < max(10, 2 * tenth):
        return ""
    rise, error = mean(last) - mean(first), ((variance(first) + variance(last)) / tenth) ** 0.5
    certain = rise > max(3 * error, 1e-3 * mean(first))
    return f"{mean(last):.4g} ± {stdev(last):.2g} after {mean(first):.4g} ± {stdev(first):.2g}" if certain else ""


def _ends(losses: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """The first tenth and the last of a stage's losses, five at least if there are so many."""
    tenth = max(5, len(losses) // 10)
    return losses[:tenth], losses[-tenth:]


def _settings(recipe: Recipe, origin: str) -> str:
    moe, evolution = recipe.moe, recipe.evolution
    stages = ", ".join(f"{stage} ({STAGES[stage]})" for stage in recipe.stages)
    lines = [
        f"Model `{recipe.model}`, data `{data_title(recipe.data)}`, seed {recipe.seed}, stages {stages}; everything is in recipe.json."
    ]
    if 3 in recipe.stages:
        lines.append(
            f"{moe.num_experts} experts ({origin}), {moe.num_experts_per_tok} per token, router {moe.router_told}, gate {moe.gate}."
        )
    if 2 in recipe.stages:
        lines.append(f"Evolution rule {evolution.rule}, stop_fraction {evolution.stop_fraction}.")
    return "\n".join(lines)


def _parameters(parameters: dict[str, ParameterCounts]) -> str:
    rows = [[name, f"{c.total:,}", f"{c.activated:,}", f"{c.trained:,}"] for name, c in parameters.items()]
    return markdown_table(["model", "total", "activated per token", "trained"], rows)


def _training(run: RunFolder, recipe: Recipe, metrics: list[dict]) -> str:
    rows = []
    for stage in recipe.stages:
        logged = [entry for entry in metrics if entry["stage"] == STAGES[stage] and "loss" in entry]
        ends = [f"{mean(part):.4g}" if part else "" for part in _ends([entry["loss"] for entry in logged])]
        aside = [
            sum(weight * entry.get(f"aux/{name}", 0.0) for name, weight in recipe.moe.aux_losses.items()) for entry in logged
        ]
        ends.append(f"{mean(_ends(aside)[1]):.4g}" if any(aside) else "")
        seconds = run.stage(stage).seconds
        took = seconds.read_text(encoding="utf-8").strip() if seconds.is_file() else ""
        rows.append([f"{stage} ({STAGES[stage]})", *ends, took])
    table = markdown_table(["stage", "loss at first", "loss at last", "of which auxiliary losses", "seconds"], rows)
    table += "\n\nEach loss is the mean over a tenth of the lines in metrics.jsonl, and over five lines at least."
    if not run.skipped_records.is_file():
        return table
    left_out = len(run.skipped_records.read_text(encoding="utf-8").splitlines())
    return f"{table}\n\n{counted(left_out, 'bad record')} left out; {run.skipped_records.name} has the reasons."


def _evolution(run: RunFolder, metrics: list[dict]) -> list[str]:
    report = run.stage(2).diversity
    if not report.is_file():
        return []
    distance = json.loads(report.read_text())["relative_distance"]
    table = markdown_table(
        ["", *distance],
        [["distance to expert 1 / distance expert 1 moved", *(f"{value:.3f}" for value in distance.values())]],
    )
    meaning = (
        "How far an evolved expert is from expert 1, by how far expert 1 itself moved in Stage II: 0 is a copy of expert 1, 1 is "
        "as far as expert 1 moved. Larger is more different; near 0 is bad, for the router has nothing to choose between."
    )
    return ["## Evolved experts", meaning, table, picture(run.path, "distances.png", lambda path: plot_distances(metrics, path))]
