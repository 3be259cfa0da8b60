"""What the stages share: loading, the Trainer's arguments, folders that can be resumed."""

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.trainer_utils import set_seed

from evomoe.configuration import EvoMoEConfig, MoEConfig
from evomoe.data.conversations import Collator, ConversationDataset
from evomoe.data.records import Records, load_records
from evomoe.evolution import check_rule
from evomoe.loading import load_config, load_model, load_processor
from evomoe.modeling import EvoMoEMixin
from evomoe.placement import moe_layers
from evomoe.recipe import STAGES, Recipe
from evomoe.stages.trainable import check_parts, set_trainable
from evomoe.structure import text_config
from evomoe.trainer import EvoMoETrainer


@dataclass(frozen=True)
class StageFolder:
    """Where one stage leaves its work: ``model/`` when it is done, ``checkpoints/`` on the way."""

    path: Path

    @property
    def model(self) -> Path:
        """The finished model; it exists only when the stage is done."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that was written to its end."""
        whole = [p for p in self.checkpoints.glob("checkpoint-*") if (p / "trainer_state.json").is_file()]
        return max(whole, key=lambda p: int(p.name.rpartition("-")[2]), default=None)


def stage_folder(output: str | Path, stage: int) -> StageFolder:
    """The folder of a stage inside a run folder, e.g. ``stage2_evolution``."""
    return StageFolder(Path(output) / f"stage{stage}_{STAGES[stage]}")


def is_main_process() -> bool:
    """Whether this process writes the files that all processes share."""
    return int(os.environ.get("RANK", "0")) == 0


def load_dense(recipe: Recipe, source: Path | str) -> PreTrainedModel:
    """Loads the dense model that a stage starts from.

    Raises:
        ValueError: it is sparse already.
    """
    model = load_model(source, recipe.dtype, recipe.trust_remote_code)
    if isinstance(model, EvoMoEMixin):
        raise ValueError(f"{source} is an EvoMoE model already; training starts from a dense model.")
    return model


def check_output(recipe: Recipe, resume: bool) -> None:
    """Makes sure that the output folder is new, or holds this recipe's unfinished run.

    Raises:
        ValueError: the folder exists and ``resume`` is off, or holds another run.
    """
    output, written = Path(recipe.output), Path(recipe.output) / "recipe.json"
    if output.exists() and not output.is_dir():
        raise ValueError(f"output: {output} is a file; name a folder.")
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not resume:
        raise ValueError(f"output: {output} exists and is not empty. Add --resume to go on with the run in it, or name another.")
    if not written.is_file():
        raise ValueError(f"output: {output} holds no recipe.json, so there is no run to resume; name another folder.")
    changed = recipe.differences(Recipe.load(written))
    if changed:
        raise ValueError(f"output: {output} holds a run of another recipe ({'; '.join(changed)}). Name another folder.")


def check_recipe(recipe: Recipe) -> tuple[PreTrainedConfig, MoEConfig]:
    """Refuses, before anything is loaded, what a later stage would refuse: names, placement, a model that is sparse already.

    Returns:
        The dense model's configuration and the MoE part of the sparse one.
    """
    config = load_config(recipe.model, recipe.trust_remote_code)
    if isinstance(config, EvoMoEConfig):
        raise ValueError(f"{recipe.model} is an EvoMoE model already; training starts from a dense model.")
    moe = MoEConfig.for_model(config, recipe.placement(), expert_init=recipe.expert_init, **asdict(recipe.moe))
    if 2 in recipe.stages:
        check_rule(recipe.evolution)
    for stage in recipe.stages:
        trainer_options(recipe, stage)
        check_parts(recipe.stage(stage).train)
    return config, moe


def load_data(recipe: Recipe, data: str) -> Records:
    """The records of one data set, checked."""
    return load_records(data, recipe.image_root, recipe.on_bad_record, max_pixels=recipe.max_pixels)


def trainer_options(recipe: Recipe, stage: int) -> dict[str, Any]:
    """The user's TrainingArguments for a stage.

    Raises:
        ValueError: there is no such argument; the nearest name is suggested.
    """
    options = recipe.trainer | recipe.stage(stage).trainer
    for name in options:
        if name not in TrainingArguments.__dataclass_fields__:
            nearest = get_close_matches(name, TrainingArguments.__dataclass_fields__, 1)
            raise ValueError(
                f"trainer: TrainingArguments has no '{name}'" + (f"; did you mean '{nearest[0]}'?" if nearest else ".")
            )
    return options


def training_arguments(recipe: Recipe, stage: int, folder: StageFolder, num_records: int) -> TrainingArguments:
    """The Trainer's arguments for a stage: the recipe's, then the user's."""
    options = recipe.stage(stage)
    steps = options.steps or planned_steps(recipe, stage, num_records)
    arguments = {
        "output_dir": str(folder.checkpoints),
        "learning_rate": options.learning_rate,
        "num_train_epochs": options.epochs,
        "max_steps": options.steps or -1,
        "per_device_train_batch_size": options.batch_size,
        "gradient_accumulation_steps": options.accumulation,
        "lr_scheduler_type": "cosine",
        "warmup_steps": int(0.03 * steps),
        "weight_decay": 0.0,
        "logging_steps": max(1, steps // 50),
        "save_strategy": "steps",
        "save_steps": max(10, steps // 4),
        "save_total_limit": 2,
        "report_to": "none",
        "remove_unused_columns": False,
        "dataloader_num_workers": recipe.workers,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "disable_tqdm": True,
        "train_sampling_strategy": "group_by_length",
        "use_cpu": not torch.cuda.is_available(),
    }
    return TrainingArguments(**arguments | trainer_options(recipe, stage))


def planned_steps(recipe: Recipe, stage: int, num_records: int) -> int:
    """Optimiser steps of a stage, as the Trainer will count them."""
    options = recipe.stage(stage)
    if options.steps:
        return options.steps
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    batches = -(-num_records // (options.batch_size * processes))
    return max(1, int(-(-batches // options.accumulation) * options.epochs))


def train(
    recipe: Recipe,
    stage: int,
    model: PreTrainedModel,
    source: Path | str,
    folder: StageFolder,
    records: Records,
    finish: Callable[[EvoMoETrainer], None] | None = None,
    **trainer_fields: Any,
) -> None:
    """Trains one stage and leaves its model in ``folder``, resuming from the last whole checkpoint there.

    Args:
        source: where the model came from, for its processor.
        records: what it trains on.
        finish: called with the trainer after training, before the model is written.
        trainer_fields: for ``EvoMoETrainer``.
    """
    processor = load_processor(source, recipe.trust_remote_code)
    dataset = ConversationDataset(records, processor, recipe.max_length, recipe.on_bad_record)
    arguments = training_arguments(recipe, stage, folder, len(dataset))
    if arguments.device.type == "cpu":
        torch.set_flush_denormal(True)  # without it, steps become several times slower as weights settle
    set_seed(recipe.seed)
    layers = moe_layers(recipe.placement(), text_config(model.config).num_hidden_layers)
    set_trainable(model, recipe.stage(stage).train, layers)
    trainer = EvoMoETrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=Collator(processor),
        processing_class=processor,
        lengths=dataset.lengths() if arguments.train_sampling_strategy == "group_by_length" else None,
        moe_layers=layers,
        metrics=folder.path.parent / "metrics.jsonl",
        stage=STAGES[stage],
        **trainer_fields,
    )
    checkpoint = folder.last_checkpoint()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if finish:
        finish(trainer)
    partial = folder.path / "model.partial"
    trainer.save_model(str(partial))
    if trainer.is_world_process_zero():
        processor.save_pretrained(partial)
        (partial / "training_args.bin").unlink(missing_ok=True)  # a pickle; recipe.json says the same
        os.replace(partial, folder.model)
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
