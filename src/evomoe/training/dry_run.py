"""What a run would do: what trains, steps, memory, disk space. Loads no weights, unless to measure time."""

import datetime
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import TrainingArguments
from transformers.modeling_utils import PreTrainedModel

from evomoe.data.conversations import ConversationDataset
from evomoe.data.mix import Share
from evomoe.data.streamed import StreamedDataset
from evomoe.model.accounting import count_parameters, large_router
from evomoe.model.structure import decoder_layers, ffn_names, text_config
from evomoe.recipe.data_mix import data_title
from evomoe.recipe.dry_run_options import DryRunOptions
from evomoe.recipe.options import STAGES
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.run_folder import Resume
from evomoe.support.device import best_device, device_memory, device_name
from evomoe.support.errors import foreign
from evomoe.support.text import bytes_in, counted, in_bytes, readable
from evomoe.training.arguments import shares_weights, trainer_options, training_arguments
from evomoe.training.checked_run import CheckedRun, check_run, load_data
from evomoe.training.identity import same_run
from evomoe.training.measured import Measured, measure
from evomoe.training.memory import StageMemory, largest_batch, largest_layer, set_precision, stage_memory
from evomoe.training.record_order import planned_steps, steps_per_pass
from evomoe.training.tried_arguments import steps_between


@dataclass
class _Whole:
    """What the stages told of so far take.

    Attributes:
        begun: whether a part of the run is done, which is not counted.
        steps: of all.
        seconds: of all, where they were measured.
        peak: most bytes on a device at any one time, by stage.
        kept: bytes on the disk once they are done.
        most: most bytes on the disk at any one time.
    """

    begun: bool = False
    steps: int = 0
    seconds: float = 0.0
    peak: dict[int, int] = field(default_factory=dict)
    kept: int = 0
    most: int = 0

    def add(self, steps: int, seconds: float) -> None:
        self.steps, self.seconds = self.steps + steps, self.seconds + seconds

    def add_memory(self, stage: int, alone: StageMemory, evolved: int, peak: int, checkpoints: int) -> None:
        """What one process holds by itself is on the disk, however several share it: weights and, in checkpoints, the optimizer's."""
        self.peak[stage] = peak
        self.most = max(self.most, self.kept + checkpoints * (alone.weights + alone.optimizer + evolved))
        self.kept += alone.weights + evolved
        self.most = max(self.most, self.kept)

    def told(self, output: str) -> list[str]:
        """Lines for the end of a dry run."""
        text = f"In all: {counted(self.steps, 'step')}{' left' if self.begun else ''}"
        if self.seconds:
            text += f" in {_duration(self.seconds)} (h:mm:ss)"
        if not self.peak:
            return [f"{text}."]
        stage = max(self.peak, key=lambda stage: self.peak[stage])
        text += f"; at most {in_bytes(self.peak[stage])} of memory, in Stage {stage}"
        lines = [f"{text}; about {in_bytes(self.most)} of disk space on the way, {in_bytes(self.kept)} in the end."]
        there = next(folder for folder in (Path(output).absolute(), *Path(output).absolute().parents) if folder.is_dir())
        if (free := shutil.disk_usage(there).free) < self.most:
            lines.append(f"  That is more than is free there, {in_bytes(free)}. Make room, or name another `output`.")
        return lines


def describe(
    recipe: Recipe,
    resume: Resume = False,
    resume_anyway: bool = False,
    options: DryRunOptions = DryRunOptions(),  # noqa: B008
) -> str:
    """Checks recipe, model and data, and tells for every stage what trains, over how many records and steps, and what it takes.

    Args:
        recipe: the run.
        resume, resume_anyway: as for ``run``.
        options: what else to look into.

    Raises:
        ValueError: what the run itself would refuse before training.
    """
    replace(options, dry_run=True).check()
    resume = True if resume_anyway else resume
    whole, listed = _Whole(), set[str]()
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
    if resume and not run.folder.has_begun():
        lines.append(f"There is no run in {run.folder.path} yet: this one would begin at the beginning.")
    elif resume:
        same_run(run, datasets, resume_anyway)
    for stage, dataset in datasets.items():
        data, of_trainer, count = data_title(recipe.data_of(stage)), trainer_options(recipe, stage), dataset.per_pass
        steps = planned_steps(recipe, stage, count)
        finished = bool(resume) and run.folder.stage(stage).model.is_dir()
        done = steps if finished else run.folder.stage(stage).last_step() if resume else 0
        came = "; finished" if finished else f"; goes on after step {done}" if done else ""
        whole.begun |= done > 0
        model = run.prepared(stage)
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        counts, settings = count_parameters(model, names), recipe.stage(stage)
        lines += [
            "",
            f"Stage {stage} ({STAGES[stage]}): {_amount(dataset)} {data}{came}",
            *(_streamed(dataset, recipe) if isinstance(dataset, StreamedDataset) else _shares(dataset.shares)),
            f"  {counted(steps, 'step')} of {settings.batch_size} x {settings.accumulation} records, "
            f"learning rate {settings.learning_rate:g}",
            f"  trains {settings.train}: {readable(counts.trained)} of {readable(counts.total)} parameters, {len(names)} tensors"
            + (f"; {readable(counts.activated)} run per token" if stage == 3 else ""),
            f"  {_shorten(names)}",
        ]
        if not finished:
            lines += _memory(run, stage, model, dataset, options, whole)
            took = measure(run, stage, dataset, options.measure) if options.measure else None
            lines += [_time(took, steps - done)] if took else []
            whole.add(steps - done, took.seconds * (steps - done) if took else 0.0)
        if stage == 3 and (warning := large_router(model)):
            lines.append(f"  {warning}")
        lines += [f"  {note}" for note in (*dataset.notes, *run.warnings(stage, dataset))]
        if dataset.cut:
            first = "of the first, " if isinstance(dataset, StreamedDataset) else ""
            lines.append(f"  cut at max_length {recipe.max_length}: {first}{counted(dataset.cut, 'record')}")
        if dataset.skipped:
            new = [message for message in dataset.skipped if message not in listed]
            listed.update(new)
            lines += [
                f"  {counted(len(dataset.skipped), 'bad record')} would be left out{':' if new else ', as above'}",
                *(f"    {message}" for message in new),
            ]
        if of_trainer:
            lines.append(f"  TrainingArguments: {of_trainer}")
    device = best_device()
    where = "CPU" if device.type == "cpu" else device_name(device)
    kept = "Nothing was kept" if options.measure else "Nothing was loaded or written"
    return "\n".join([*lines, "", *whole.told(recipe.output), f"Would run on {where}. {kept}."])


def _time(took: Measured, steps: int) -> str:
    peak = f", {in_bytes(took.peak)} of the GPU's memory at the peak" if took.peak else ""
    all_of_them = f"{_duration(took.seconds * steps)} (h:mm:ss) for {counted(steps, 'step')}"
    return f"  measured over {counted(took.steps, 'step')}: {took.seconds:.3g} s each, {all_of_them}{peak}"


def _duration(seconds: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=round(seconds))


def _memory(
    run: CheckedRun, stage: int, model: PreTrainedModel, dataset: ConversationDataset, options: DryRunOptions, whole: _Whole
) -> list[str]:
    """What a stage needs of the memory of each device, and what to do if that is more than there is; ``whole`` is told too."""
    recipe, settings = run.recipe, run.recipe.stage(stage)
    arguments = training_arguments(recipe, stage, run.folder.stage(stage), dataset.per_pass)
    own = str(run.dense.config.dtype or "float32").removeprefix("torch.")
    precision = getattr(torch, own if recipe.dtype == "auto" else recipe.dtype)
    set_precision(model, precision)
    evolved = 0
    if stage == 2:
        names, layers = ffn_names(model), decoder_layers(model)
        ffns = [layers[index].get_submodule(names[index]) for index in run.moe.moe_layers]
        evolved = 4 * (run.moe.num_experts - 1) * sum(p.numel() for ffn in ffns for p in ffn.parameters())
    try:
        batch = largest_batch(dataset, settings.batch_size, recipe.packing)
        alone = stage_memory(model, batch, arguments, 0 if recipe.evolution.offload else evolved)
    except Exception as error:  # of a family, a router or an optimizer that looks at what tensors hold: no reason to end
        return [f"  memory: no estimate ({foreign(error)})"]
    need = alone.shared_out(arguments, options.processes, largest_layer(model))
    steps = planned_steps(recipe, stage, dataset.per_pass)
    per_pass = steps if recipe.streaming else steps_per_pass(recipe, stage, dataset.per_pass)
    whole.add_memory(stage, alone, evolved, need.peak, _checkpoints(arguments, steps, per_pass))
    parts = {"weights": need.weights, "gradients": need.gradients, "optimiser": need.optimizer, "evolved experts": need.evolved,
             "activations": need.activations}  # fmt: skip
    if (more := need.peak - sum(parts.values())) > need.peak / 100:  # such as weights in half precision, as autocast makes them
        parts["copies"] = more
    rows, length = batch["input_ids"].shape
    where = "the process" if options.processes == 1 else f"each of {options.processes} processes"
    lines = [
        f"  tensors of {where}: at most {in_bytes(need.peak)}; {', '.join(f'{name} {in_bytes(size)}' for name, size in parts.items() if size)}",
        f"    with {counted(rows, 'row')} of {counted(length, 'token')}, the longest records"
        + (" among the first" if isinstance(dataset, StreamedDataset) else "")
        + (", without what the vision tower keeps" if need.vision_left_out else ""),
    ]
    named = bytes_in(options.device_memory)
    there = named or device_memory()
    if there and need.peak > there:
        device = "the device you name" if named else "this device"
        smaller = _smaller(recipe, stage, need, arguments, there)
        lines.append(f"    That is more than {device} has, {in_bytes(there)}. Smaller: {', '.join(smaller)}.")
    elif named:
        lines.append(f"    It fits into {in_bytes(named)}: {in_bytes(named - need.peak)} to spare.")
    return lines


def _smaller(recipe: Recipe, stage: int, need: StageMemory, arguments: TrainingArguments, there: int) -> list[str]:
    """What would need less than is ``there`` and is not chosen yet; first what makes most of the largest part smaller."""
    of_weights = {
        "`dtype=bfloat16`": recipe.dtype != "bfloat16",
        "`evolution.offload`": stage == 2 and not recipe.evolution.offload,
        f"`stage{stage}.lora=16`": stage in (0, 1) and not recipe.stage(stage).lora,
        "`trainer` with optim=adamw_bnb_8bit": need.optimizer > need.peak / 10 and "8bit" not in str(arguments.optim),
        "`num_experts`": stage in (2, 3) and recipe.moe.num_experts > 2,
        "`moe_layers`": stage in (2, 3),
        "several devices and `trainer` with fsdp=true": not shares_weights(arguments),
    }
    of_activations = {
        "`trainer` with gradient_checkpointing=true": not arguments.gradient_checkpointing,
        f"`stage{stage}.batch_size=1`": recipe.stage(stage).batch_size > 1,
        "`max_length`": True,
    }
    if need.peak - need.activations > there:  # then batches alone can never be small enough
        of_activations = {}
    ways = [of_weights, of_activations] if need.activations < need.peak / 2 else [of_activations, of_weights]
    return [way for kind in ways for way, is_open in kind.items() if is_open]


def _checkpoints(arguments: TrainingArguments, steps: int, per_pass: int) -> int:
    """How many lie on the disk at once: those that are kept, and the one that is being written."""
    saves = int(steps // steps_between(arguments, "save", steps, per_pass))
    kept = min(saves, arguments.save_total_limit or saves)
    return kept + (saves > kept)


def _amount(dataset: ConversationDataset) -> str:
    return "a stream of" if isinstance(dataset, StreamedDataset) else f"{counted(dataset.per_pass, 'record')} of"


def _streamed(dataset: StreamedDataset, recipe: Recipe) -> list[str]:
    """What is known of a stream, and what is not."""
    whole = sum(source.weight for source in dataset.sources)
    return [
        f"  {source.name}: {counted(len(source.shards), 'shard')}, {source.weight / whole:.0%} of the records"
        for source in dataset.sources
    ] + [
        f"  read and checked: the first {counted(len(dataset), 'record')}; the others are checked when they are read, and their number and "
        "lengths are not known",
        f"  shuffled within {counted(recipe.streaming, 'record')}; a source that ends begins anew",
    ]


def _shares(shares: Sequence[Share]) -> list[str]:
    """A line for each source of a mix."""
    return [
        f"  a pass takes {share.taken:,} of {share.name}, which has {counted(share.records, 'record')} (weight {share.weight:g})"
        for share in shares
        if len(shares) > 1 or share.weight != 1
    ]


def _shorten(names: list[str], shown: int = 3) -> str:
    more = f", and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
