"""What a run would do: what trains, how many parameters, how many steps. Loads no weights."""

import torch

from evomoe.accounting import count_parameters, readable
from evomoe.recipe import STAGES, Recipe
from evomoe.run_folder import check_output
from evomoe.stages.common import check_recipe, load_data, planned_steps, trainer_options
from evomoe.stages.trainable import set_trainable
from evomoe.structure import text_config


def describe(recipe: Recipe, resume: bool = False) -> str:
    """Checks recipe, model and data, and tells for every stage what trains, over how many records and steps.

    Raises:
        ValueError: what the run itself would refuse before training.
    """
    dense, sparse = check_recipe(recipe)
    check_output(recipe, resume)
    moe, num_layers = sparse.config.moe, text_config(dense.config).num_hidden_layers
    lines = [
        f"Model: {recipe.model} ({type(dense).__name__}, {readable(count_parameters(dense).total)} parameters, "
        f"{num_layers} layers)",
        f"MoE layers: {', '.join(map(str, moe.moe_layers))}; {moe.num_experts} experts, {moe.num_experts_per_tok} per token, "
        f"router {moe.router}, gate {moe.gate}",
    ]
    if 2 in recipe.stages:
        lines.append(f"Evolution: rule {recipe.evolution.rule}, beta {[list(r) for r in recipe.evolution.beta_ranges]}")
    for stage in recipe.stages:
        data, options = recipe.stage(stage).data or recipe.data, trainer_options(recipe, stage)
        dataset = load_data(recipe, data)
        model = sparse if stage == 3 else dense
        names = set_trainable(model, recipe.stage(stage).train, moe.moe_layers)
        counts, settings = count_parameters(model, names), recipe.stage(stage)
        lines += [
            "",
            f"Stage {stage} ({STAGES[stage]}): {len(dataset)} records of {data}",
            f"  {planned_steps(recipe, stage, len(dataset))} steps of {settings.batch_size} x {settings.accumulation} records, "
            f"learning rate {settings.learning_rate:g}",
            f"  trains {settings.train}: {readable(counts.trained)} of {readable(counts.total)} parameters, {len(names)} tensors"
            + (f"; {readable(counts.activated)} run per token" if stage == 3 else ""),
            f"  {_shorten(names)}",
        ]
        if dataset.cut:
            lines.append(f"  {dataset.cut} records are longer than max_length ({recipe.max_length}) and would be cut")
        if dataset.skipped:
            lines += [
                f"  {len(dataset.skipped)} bad records would be left out:",
                *(f"    {message}" for message in dataset.skipped),
            ]
        if options:
            lines.append(f"  TrainingArguments: {options}")
    device = "CUDA" if torch.cuda.is_available() else "CPU"
    return "\n".join([*lines, "", f"Would run on {device}. Nothing was loaded or written."])


def _shorten(names: list[str], shown: int = 3) -> str:
    more = f", and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
