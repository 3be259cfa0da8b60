"""Stage III, routing: the sparse model is assembled from the evolved experts, and only the router trains.

Implements: Section 3.1 (Stage III), Figure 2 (c).
"""

import dataclasses
import json
import re
from pathlib import Path

from evomoe.conversion.expert_init import INITS
from evomoe.conversion.upcycling import upcycle
from evomoe.data.conversations import ConversationDataset
from evomoe.model.accounting import count_parameters, parameter_facts
from evomoe.model.budget import change_moe, end_training
from evomoe.model.model_card import model_card
from evomoe.model.sparse_model import SparseModel, is_sparse
from evomoe.recipe.data_mix import data_names
from evomoe.recipe.options import STAGES
from evomoe.recipe.run_folder import StageFolder
from evomoe.support.text import markdown_table
from evomoe.training.arguments import SCHEDULE, trainer_options
from evomoe.training.checked_run import CheckedRun
from evomoe.training.collapse import check_experts_differ, check_not_collapsed
from evomoe.training.stage import train

_LOAD, _SHARE = re.compile(r"load/(\w+)/([a-z]+)(\d+)"), r"\1 tokens, \2 \3"
"""What the log calls a share of tokens, and what the model card does."""


def train_stage(run: CheckedRun, source: Path | str, folder: StageFolder, dataset: ConversationDataset) -> None:
    """Dense model in ``source`` and the run's evolved experts -> sparse model in ``folder``. A sparse ``source`` is trained further.

    Raises:
        ValueError: all evolved experts are copies of expert 1 and the recipe does not allow that.
    """
    recipe = run.recipe
    model = run.load(source) if run.starts_sparse else _assemble(run, source)
    assert is_sparse(model)
    if run.starts_sparse:
        change_moe(model, recipe.moe.of_training())
    if recipe.stage3.train == "router" and not recipe.allow_collapsed_experts:
        check_experts_differ(model, recipe.expert_init)
    train(run, 3, model, folder, dataset, finish=lambda trainer: end_training(model), card=lambda: _card(run, model))


def _assemble(run: CheckedRun, source: Path | str) -> SparseModel:
    recipe, init_options = run.recipe, dict(run.recipe.init_options)
    if option := INITS[recipe.expert_init].Options.from_stage2:
        experts = Path(init_options.setdefault(option, str(run.folder.stage(2).experts)))
        report = StageFolder(experts.parent).diversity  # as Stage II leaves it beside them
        if report.is_file() and not recipe.allow_collapsed_experts:
            schedule = trainer_options(recipe, 2).get("lr_scheduler_type", SCHEDULE) if 2 in recipe.stages else "falling"
            check_not_collapsed(json.loads(report.read_text()), schedule)
    return upcycle(
        run.load(source),
        moe_layers=recipe.placement(),
        expert_init=recipe.expert_init,
        init_options=init_options,
        seed=recipe.seed,
        **dataclasses.asdict(recipe.moe),
    )


def _card(run: CheckedRun, model: SparseModel) -> str:
    """What the run knows of the model: how each stage trained, on what, and how it ended."""
    recipe, logged, rows = run.recipe, run.folder.logged(), []
    for stage in recipe.stages:
        options, losses = recipe.stage(stage), [e for e in logged if e["stage"] == STAGES[stage] and "loss" in e]
        last = losses[-1] if losses else {}
        rows.append(
            [f"{stage} ({STAGES[stage]})", options.train, ", ".join(data_names(recipe.data_of(stage))), str(last.get("step", "")),
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
    facts = parameter_facts(count_parameters(run.prepared(3)))
    names = sorted({name for stage in recipe.stages for name in data_names(recipe.data_of(stage))})
    return model_card(model.config, type(model).__name__, recipe.model, [*facts, ("trained on", ", ".join(names))], sections)
