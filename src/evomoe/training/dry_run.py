"""What a run would do: what trains, how many parameters, how many steps, how much memory. Loads no weights, unless to measure time."""

import datetime
from collections.abc import Sequence

import torch
from transformers.modeling_utils import PreTrainedModel

from evomoe.data.conversations import ConversationDataset
from evomoe.data.mix import Share
from evomoe.model.accounting import count_parameters, large_router
from evomoe.model.structure import decoder_layers, ffn_names, text_config
from evomoe.recipe.data_mix import data_title
from evomoe.recipe.options import MOST_RECORDS, STAGES, check_whole
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.run_folder import Resume
from evomoe.support.device import best_device, device_memory, device_name
from evomoe.support.errors import foreign
from evomoe.support.text import counted, in_bytes, readable
from evomoe.training.arguments import trainer_options, training_arguments
from evomoe.training.checked_run import CheckedRun, check_run, load_data
from evomoe.training.identity import same_run
from evomoe.training.measured import Measured, measure
from evomoe.training.memory import largest_batch, largest_layer, set_precision, stage_memory
from evomoe.training.record_order import planned_steps


def describe(recipe: Recipe, resume: Resume = False, resume_anyway: bool = False, processes: int = 1, measured: int = 0) -> str:
    """Checks recipe, model and data, and tells for every stage what trains, over how many records and steps, and its memory.

    Args:
        recipe: the run.
        resume, resume_anyway: as for ``run``.
        processes: how many the run will have.
        measured: so many steps of each stage are taken, to tell how long the stage takes; 0 takes none.

    Raises:
        ValueError: what the run itself would refuse before training.
    """
    check_whole("processes", processes, 1, MOST_RECORDS)
    check_whole("measure", measured, 0, MOST_RECORDS)
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
    run.check_data(datasets)
    if resume:
        same_run(run, datasets, resume_anyway)
    for stage, dataset in datasets.items():
        data, options, count = data_title(recipe.data_of(stage)), trainer_options(recipe, stage), dataset.per_pass
        model = run.prepared(stage)
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        counts, settings = count_parameters(model, names), recipe.stage(stage)
        lines += [
            "",
            f"Stage {stage} ({STAGES[stage]}): {counted(count, 'record')} of {data}{_progress(run, stage) if resume else ''}",
            *_shares(dataset.shares),
            f"  {counted(planned_steps(recipe, stage, count), 'step')} of {settings.batch_size} x {settings.accumulation} records, "
            f"learning rate {settings.learning_rate:g}",
            f"  trains {settings.train}: {readable(counts.trained)} of {readable(counts.total)} parameters, {len(names)} tensors"
            + (f"; {readable(counts.activated)} run per token" if stage == 3 else ""),
            f"  {_shorten(names)}",
        ]
        lines += _memory(run, stage, model, dataset, processes)
        if measured:
            lines.append(_time(measure(run, stage, dataset, measured), planned_steps(recipe, stage, count)))
        if stage == 3 and (warning := large_router(model)):
            lines.append(f"  {warning}")
        lines += [f"  {note}" for note in (*dataset.notes, *run.warnings(stage, dataset))]
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
    kept = "Nothing was kept" if measured else "Nothing was loaded or written"
    return "\n".join([*lines, "", f"Would run on {where}. {kept}."])


def _time(took: Measured, steps: int) -> str:
    peak = f", {in_bytes(took.peak)} of the GPU's memory at the peak" if took.peak else ""
    whole = datetime.timedelta(seconds=round(took.seconds * steps))
    return f"  measured over {counted(took.steps, 'step')}: {took.seconds:.3g} s each, {whole} (h:mm:ss) for {counted(steps, 'step')}{peak}"


def _memory(run: CheckedRun, stage: int, model: PreTrainedModel, dataset: ConversationDataset, processes: int) -> list[str]:
    """What a stage needs of the memory of each device, and what to do if that is more than there is."""
    recipe, settings = run.recipe, run.recipe.stage(stage)
    arguments = training_arguments(recipe, stage, run.folder.stage(stage), dataset.per_pass)
    own = str(run.dense.config.dtype or "float32").removeprefix("torch.")
    precision = getattr(torch, own if recipe.dtype == "auto" else recipe.dtype)
    set_precision(model, precision)
    evolved = 0
    if stage == 2 and not recipe.evolution.offload:
        names, layers = ffn_names(model), decoder_layers(model)
        ffns = [layers[index].get_submodule(names[index]) for index in run.moe.moe_layers]
        evolved = 4 * (run.moe.num_experts - 1) * sum(p.numel() for ffn in ffns for p in ffn.parameters())
    try:
        batch = largest_batch(dataset, settings.batch_size, recipe.packing)
        alone = stage_memory(model, batch, arguments, evolved)
    except Exception as error:  # of a family, a router or an optimizer that looks at what tensors hold: no reason to end
        return [f"  memory: no estimate ({foreign(error)})"]
    need = alone.shared_out(arguments, processes, largest_layer(model))
    parts = {"weights": need.weights, "gradients": need.gradients, "optimiser": need.optimizer, "evolved experts": need.evolved,
             "activations": need.activations}  # fmt: skip
    rows, length = batch["input_ids"].shape
    where = "the process" if processes == 1 else f"each of {processes} processes"
    lines = [
        f"  tensors of {where}: at most {in_bytes(need.peak)}; {', '.join(f'{name} {in_bytes(size)}' for name, size in parts.items() if size)}",
        f"    with {counted(rows, 'row')} of {counted(length, 'token')}, the longest records"
        + (", without what the vision tower keeps" if need.vision_left_out else ""),
    ]
    if (there := device_memory()) and need.peak > there:
        lines.append(
            f"    That is more than this device has, {in_bytes(there)}. Smaller: `stage{stage}.batch_size`, `max_length`, or "
            "`trainer` with gradient_checkpointing=true, bf16=true."
        )
    return lines


def _shares(shares: Sequence[Share]) -> list[str]:
    """A line for each source of a mix."""
    return [
        f"  a pass takes {share.taken:,} of {share.name}, which has {counted(share.records, 'record')} (weight {share.weight:g})"
        for share in shares
        if len(shares) > 1 or share.weight != 1
    ]


def _progress(run: CheckedRun, stage: int) -> str:
    folder = run.folder.stage(stage)
    if folder.model.is_dir():
        return "; finished"
    return f"; goes on after step {folder.last_step()}" if folder.last_step() else ""


def _shorten(names: list[str], shown: int = 3) -> str:
    more = f", and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
