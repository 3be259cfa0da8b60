"""Stage III, routing: the sparse model is assembled from the evolved experts, and only the router trains.

Implements: Section 3.1 (Stage III), Figure 2 (c).
"""

import dataclasses
import json
import re
from pathlib import Path

from transformers.modeling_utils import PreTrainedModel

from evomoe.conversion.expert_init import INITS
from evomoe.conversion.upcycling import upcycle
from evomoe.data.conversations import ConversationDataset
from evomoe.model.accounting import count_parameters, parameter_facts
from evomoe.model.budget import end_training
from evomoe.model.hub import model_card
from evomoe.recipe.options import STAGES
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.run_folder import StageFolder, stage_folder
from evomoe.support.text import markdown_table
from evomoe.training.collapse import check_experts_differ, check_not_collapsed
from evomoe.training.stage import load_dense, load_sparse, train, trainer_options
from evomoe.training.stages.stage2_evolution import EXPERTS

_LOAD, _SHARE = re.compile(r"load/(\w+)/([a-z]+)(\d+)"), r"\1 tokens, \2 \3"
"""What the log calls a share of tokens, and what the model card does."""


def run(recipe: Recipe, source: Path | str, folder: StageFolder, dataset: ConversationDataset) -> None:
    """Dense model in ``source`` and the run's evolved experts -> sparse model in ``folder``. A sparse ``source`` is trained further.

    Raises:
        ValueError: all evolved experts are copies of expert 1 and the recipe does not allow that.
    """
    model = load_sparse(recipe, source) or _assemble(recipe, source)
    if recipe.stage3.train == "router" and not recipe.allow_collapsed_experts:
        check_experts_differ(model, recipe.expert_init)
    train(recipe, 3, model, folder, dataset, finish=lambda trainer: end_training(model), card=lambda: _card(recipe, model))


def _assemble(recipe: Recipe, source: Path | str) -> PreTrainedModel:
    init_options = dict(recipe.init_options)
    if option := INITS[recipe.expert_init].Options.from_stage2:
        experts = Path(init_options.setdefault(option, str(stage_folder(recipe.output, 2).path / EXPERTS)))
        report = experts.with_name("diversity.json")  # as Stage II leaves it beside them
        if report.is_file() and not recipe.allow_collapsed_experts:
            schedule = trainer_options(recipe, 2).get("lr_scheduler_type", "cosine") if 2 in recipe.stages else "falling"
            check_not_collapsed(json.loads(report.read_text()), schedule)
    return upcycle(
        load_dense(recipe, source),
        moe_layers=recipe.placement(),
        expert_init=recipe.expert_init,
        init_options=init_options,
        seed=recipe.seed,
        **dataclasses.asdict(recipe.moe),
    )


def _card(recipe: Recipe, model: PreTrainedModel) -> str:
    """What the run knows of the model: how each stage trained, on what, and how it ended."""
    metrics = Path(recipe.output) / "metrics.jsonl"
    logged = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()] if metrics.is_file() else []
    rows = []
    for stage in recipe.stages:
        options, losses = recipe.stage(stage), [e for e in logged if e["stage"] == STAGES[stage] and "loss" in e]
        last = losses[-1] if losses else {}
        rows.append(
            [f"{stage} ({STAGES[stage]})", options.train, Path(options.data or recipe.data).name, str(last.get("step", "")),
             f"{options.learning_rate:g}", f"{last['loss']:.4f}" if last else ""]
        )  # fmt: skip
    table = markdown_table(["stage", "trains", "data", "steps", "learning rate", "loss at the end"], rows)
    routing = [e for e in logged if "effective_experts" in e][-1:]
    load = [
        f"- {_LOAD.sub(_SHARE, name)}: {100 * value:.1f} %"
        for entry in routing
        for name, value in entry.items()
        if _LOAD.match(name)
    ]
    sections = {"Training": f"{table}\n\nSeed {recipe.seed}. recipe.json of the run has every option."}
    if load:
        effective = routing[0]["effective_experts"]
        sections["Routing at the end of training"] = f"Effective number of experts: {effective:.2f}.\n\n" + "\n".join(load)
    facts, moe = parameter_facts(count_parameters(model)), model.config.moe
    names = sorted({Path(recipe.stage(stage).data or recipe.data).name for stage in recipe.stages})
    return model_card(moe, type(model).__name__, recipe.model, [*facts, ("trained on", ", ".join(names))], sections)
