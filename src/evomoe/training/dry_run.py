"""What a run would do: what trains, how many parameters, how many steps. Loads no weights."""

from evomoe.model.accounting import count_parameters, large_router
from evomoe.model.structure import text_config
from evomoe.recipe.options import STAGES
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.run_folder import Resume
from evomoe.support.device import best_device, device_name
from evomoe.support.text import counted, readable
from evomoe.training.arguments import trainer_options
from evomoe.training.checked_run import CheckedRun, check_run, load_data
from evomoe.training.identity import same_run
from evomoe.training.record_order import planned_steps


def describe(recipe: Recipe, resume: Resume = False, resume_anyway: bool = False) -> str:
    """Checks recipe, model and data, and tells for every stage what trains, over how many records and steps.

    Raises:
        ValueError: what the run itself would refuse before training.
    """
    resume = True if resume_anyway else resume
    run = check_run(recipe, resume)
    recipe, dense, moe = run.recipe, run.dense, run.moe
    num_layers = text_config(dense.config).num_hidden_layers
    lines = [
        f"Model: {recipe.model} ({type(dense).__name__}, {readable(count_parameters(dense).total)} parameters, "
        f"{num_layers} layers)",
        f"MoE layers: {', '.join(map(str, moe.moe_layers))}; {moe.num_experts} experts, {moe.num_experts_per_tok} per token, "
        f"router {moe.router}, gate {moe.gate}",
    ]
    if 2 in recipe.stages:
        lines.append(f"Evolution: rule {recipe.evolution.rule}, beta {[list(r) for r in recipe.evolution.beta_ranges]}")
    datasets = load_data(recipe, run.processor)
    if resume:
        same_run(run, datasets, resume_anyway)
    for stage, dataset in datasets.items():
        data, options = recipe.data_of(stage), trainer_options(recipe, stage)
        model, names = run.model_of(stage), run.trained_names(stage)
        counts, settings = count_parameters(model, names), recipe.stage(stage)
        lines += [
            "",
            f"Stage {stage} ({STAGES[stage]}): {counted(len(dataset), 'record')} of {data}{_progress(run, stage) if resume else ''}",
            f"  {counted(planned_steps(recipe, stage, len(dataset)), 'step')} of {settings.batch_size} x {settings.accumulation} records, "
            f"learning rate {settings.learning_rate:g}",
            f"  trains {settings.train}: {readable(counts.trained)} of {readable(counts.total)} parameters, {len(names)} tensors"
            + (f"; {readable(counts.activated)} run per token" if stage == 3 else ""),
            f"  {_shorten(names)}",
        ]
        in_a_step = settings.batch_size * settings.accumulation
        if in_a_step > len(dataset):
            lines.append(
                f"  a step takes {in_a_step} records, more than there are; smaller: `stage{stage}.batch_size`, "
                f"`stage{stage}.accumulation`"
            )
        if stage == 3 and (warning := large_router(model)):
            lines.append(f"  {warning}")
        lines += [f"  {note}" for note in dataset.notes]
        if dataset.cut:
            lines.append(f"  cut at max_length {recipe.max_length}: {counted(dataset.cut, 'record')}")
        if dataset.skipped:
            lines += [
                f"  {counted(len(dataset.skipped), 'bad record')} would be left out:",
                *(f"    {message}" for message in dataset.skipped),
            ]
        if options:
            lines.append(f"  TrainingArguments: {options}")
    device = best_device()
    where = "CPU" if device.type == "cpu" else device_name(device)
    return "\n".join([*lines, "", f"Would run on {where}. Nothing was loaded or written."])


def _progress(run: CheckedRun, stage: int) -> str:
    folder = run.folder.stage(stage)
    if folder.model.is_dir():
        return "; finished"
    return f"; goes on after step {folder.last_step()}" if folder.last_step() else ""


def _shorten(names: list[str], shown: int = 3) -> str:
    more = f", and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
