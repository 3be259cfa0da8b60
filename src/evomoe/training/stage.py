"""What the stages share: loading, checks before training, the Trainer's arguments."""

import logging
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_type_hints

from huggingface_hub.dataclasses import type_validator
from transformers import TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks, is_deepspeed_available
from transformers.modeling_utils import PreTrainedModel
from transformers.trainer_utils import set_seed

from evomoe.conversion.expert_init import INITS, config_fields
from evomoe.data.chat_template import ChatTemplate
from evomoe.data.conversations import Collator, ConversationDataset
from evomoe.data.records import load_records
from evomoe.model.configuration import EvoMoEConfig, MoEConfig, contradictions
from evomoe.model.hub import CARD
from evomoe.model.loading import empty_model, empty_models, load_config, load_model, load_processor, takes_pictures
from evomoe.model.structure import text_config
from evomoe.recipe.options import STAGES, MoEOptions
from evomoe.recipe.placement import moe_layers
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.run_folder import StageFolder, stage_folder
from evomoe.support.device import best_device, prepare
from evomoe.support.errors import OptionError, foreign, within
from evomoe.support.files import write_text
from evomoe.support.processes import is_main_process
from evomoe.support.text import counted
from evomoe.training.evolution import check_rule
from evomoe.training.trainable import set_trainable
from evomoe.training.trainer import EvoMoETrainer

logger = logging.getLogger(__name__)


def load_dense(recipe: Recipe, source: Path | str) -> PreTrainedModel:
    """Loads the dense model that a stage starts from."""
    return load_model(source, recipe.dtype, recipe.trust_remote_code)


def load_sparse(recipe: Recipe, source: Path | str) -> PreTrainedModel | None:
    """Loads the EvoMoE model that Stage III goes on with; None if ``source`` is a dense model."""
    if not isinstance(load_config(source, recipe.trust_remote_code), EvoMoEConfig):
        return None
    return load_model(source, recipe.dtype, recipe.trust_remote_code)


def as_its_model(recipe: Recipe) -> Recipe:
    """The recipe with the mixture of the model that it starts from, if that is an EvoMoE, which Stage III trains further as it is.

    Raises:
        OptionError: such a model, but another stage is asked for.
        ValueError: such a model, but another mixture is asked for; the message names the options.
    """
    config = load_config(recipe.model, recipe.trust_remote_code)
    if not isinstance(config, EvoMoEConfig):
        return recipe
    if recipe.stages != (3,):
        raise OptionError("stages", f"{recipe.model} is an EvoMoE model already; Stage III alone trains it further: `stages=3`.")
    own, wrong = config.moe, contradictions(config, recipe.moe, recipe.moe_layers)
    if recipe.expert_init not in (Recipe.expert_init, own.expert_init):
        wrong.append("expert_init")
    if recipe.init_options:
        wrong.append("init_options")
    if wrong:
        named = ", ".join(f"`{name}`" for name in wrong)
        raise ValueError(f"{recipe.model} is an EvoMoE model already and is trained as it is; leave out {named}.")
    moe = MoEOptions(**{field.name: getattr(own, field.name) for field in fields(MoEOptions)})
    return recipe.but(moe=moe, expert_init=own.expert_init, moe_layers=",".join(map(str, own.moe_layers)))


def check_recipe(recipe: Recipe) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Refuses, before weights are loaded or anything is written, what a later stage would refuse.

    Returns:
        The dense and the sparse model, without weights; twice the sparse one if training goes on with it.

    Raises:
        ValueError: names the option, or says why the model cannot be used.
    """
    config = load_config(recipe.model, recipe.trust_remote_code)
    if isinstance(config, EvoMoEConfig):
        recipe = as_its_model(recipe)
        dense = sparse = empty_model(config)
    else:
        recipe.check_expert_init()
        made_by = config_fields(recipe.expert_init, recipe.moe.num_experts)
        dense, sparse = empty_models(config, recipe.placement(), **made_by, **asdict(recipe.moe))
    moe = sparse.config.moe
    if 2 in recipe.stages:
        check_rule(recipe.evolution)
    if 3 in recipe.stages and sparse is not dense:
        _check_init_options(recipe, moe)
    for stage in recipe.stages:
        try:
            arguments = training_arguments(recipe, stage, stage_folder(recipe.output, stage), num_records=1)
            _check_loggers(arguments)
        except (ValueError, ImportError) as error:
            raise OptionError("trainer", f"TrainingArguments of stage {stage}: {foreign(error)}") from error
        _check_trained_parts(recipe, stage, sparse if stage == 3 else dense, moe)
    ChatTemplate(load_processor(recipe.model, recipe.trust_remote_code))
    return dense, sparse


def _check_loggers(arguments: TrainingArguments) -> None:
    """The Trainer would look for their packages only when the data are read and the model is loaded."""
    for logger_class in get_reporting_integration_callbacks(arguments.report_to):
        try:
            logger_class()
        except RuntimeError as error:
            raise ValueError(f"report_to: {error}") from error


def _check_trained_parts(recipe: Recipe, stage: int, model: PreTrainedModel, moe: MoEConfig) -> None:
    what = recipe.stage(stage).train
    try:
        with within(f"stage{stage}"):
            set_trainable(model, what, moe.moe_layers)
    except OptionError as error:
        parts = what.split("+")
        if takes_pictures(model.config) or not {"projector", "vision"} & set(parts):
            raise
        others = " ".join(str(other) for other in recipe.stages if other != stage)
        of_text = "+".join(part for part in parts if part not in ("projector", "vision"))
        ways = []
        if others:
            ways.append(f"`stages={others}`")
        if of_text:
            ways.append(f"`stage{stage}.train={of_text}`")
        remedy = f": give {' or '.join(ways)}" if ways else ""
        raise OptionError(error.option, f"{error.message} It is text-only{remedy}.") from error


def _check_init_options(recipe: Recipe, moe: MoEConfig) -> None:
    initialiser = INITS[recipe.expert_init]
    needed = initialiser.Options.from_stage2
    given = not needed or needed in recipe.init_options
    options = initialiser.read(recipe.init_options, recipe.expert_init, given)
    if given:
        options.check_fits(moe.moe_layers, moe.num_experts)


def load_data(recipe: Recipe, keep: bool = False) -> dict[int, ConversationDataset]:
    """The data of each stage, every record checked but for its pictures' pixels; what stages share is read and checked once.

    Args:
        keep: hold what becomes of each record in memory, for several runs in turn.

    Raises:
        ValueError: data cannot be opened, or have bad records that the recipe does not let pass.
    """
    processor = load_processor(recipe.model, recipe.trust_remote_code)

    def load(data: str) -> ConversationDataset:
        records = load_records(data, recipe.image_root, recipe.on_bad_record, max_pixels=recipe.max_pixels)
        dataset = ConversationDataset(records, processor, recipe.max_length, recipe.on_bad_record, recipe.image_aspect, keep)
        dataset.check()
        return dataset

    names = {stage: recipe.stage(stage).data or recipe.data for stage in recipe.stages}
    loaded = {name: load(name) for name in dict.fromkeys(names.values())}
    return {stage: loaded[name] for stage, name in names.items()}


def trainer_options(recipe: Recipe, stage: int) -> dict[str, Any]:
    """The user's TrainingArguments for a stage.

    Raises:
        ValueError: there is no such argument, with the nearest name; its value is of another type; or it needs a package that is
            not there.
    """
    options, types = recipe.trainer | recipe.stage(stage).trainer, get_type_hints(TrainingArguments)
    if options.get("deepspeed") and not is_deepspeed_available():
        raise ValueError("deepspeed is not installed: pip install deepspeed")
    for name, value in options.items():
        if name not in TrainingArguments.__dataclass_fields__:
            nearest = get_close_matches(name, TrainingArguments.__dataclass_fields__, 1)
            raise ValueError(f"TrainingArguments has no '{name}'" + (f"; did you mean '{nearest[0]}'?" if nearest else "."))
        accepted = (types[name], *get_args(types[name]))
        is_number = float in accepted and int not in accepted and type(value) is int  # JSON's 1 will do for 1.0
        try:
            type_validator(name, float(value) if is_number else value, types[name])
        except TypeError as error:
            raise ValueError(str(error)) from error
    return options


def training_arguments(recipe: Recipe, stage: int, folder: StageFolder, num_records: int) -> TrainingArguments:
    """The Trainer's arguments for a stage: the recipe's, then the user's."""
    options = recipe.stage(stage)
    steps = planned_steps(recipe, stage, num_records)
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
        "dataloader_pin_memory": best_device().type == "cuda",
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "disable_tqdm": True,
        "train_sampling_strategy": "group_by_length",
        "use_cpu": best_device().type == "cpu",
    }
    return TrainingArguments(**arguments | trainer_options(recipe, stage))


def planned_steps(recipe: Recipe, stage: int, num_records: int) -> int:
    """Optimiser steps of a stage, as the Trainer will count them."""
    options = recipe.stage(stage)
    if options.steps:
        return options.steps
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    batches = math.ceil(num_records / (options.batch_size * processes))
    return max(1, math.ceil(math.ceil(batches / options.accumulation) * options.epochs))


def train(
    recipe: Recipe,
    stage: int,
    model: PreTrainedModel,
    folder: StageFolder,
    dataset: ConversationDataset,
    finish: Callable[[EvoMoETrainer], None] | None = None,
    card: Callable[[], str] | None = None,
    **trainer_fields: Any,
) -> None:
    """Trains one stage and leaves its model in ``folder``, resuming from the last whole checkpoint there.

    Args:
        dataset: what it trains on.
        finish: called with the trainer after training, before the model is written.
        card: makes the model card, after training.
        trainer_fields: for ``EvoMoETrainer``.
    """
    processor = dataset.processor
    arguments = training_arguments(recipe, stage, folder, len(dataset))
    if arguments.n_gpu > 1:
        raise ValueError(
            f"This process sees {arguments.n_gpu} GPUs. Start one process per GPU: torchrun --nproc-per-node {arguments.n_gpu} "
            "-m evomoe.cli train ..., or show it one GPU with CUDA_VISIBLE_DEVICES=0."
        )
    if dataset.cut and is_main_process():
        logger.warning("Cut at max_length %d: %d of %s.", recipe.max_length, dataset.cut, counted(len(dataset), "record"))
    prepare(arguments.device)
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
        label=folder.label,
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
        if card:
            write_text(partial / CARD, card())
        (partial / "training_args.bin").unlink(missing_ok=True)  # a pickle; recipe.json says the same
        os.replace(partial, folder.model)
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
