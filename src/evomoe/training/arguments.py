"""The Trainer's arguments: the recipe's, then the user's."""

import re
from difflib import get_close_matches
from typing import Any, get_args, get_type_hints

import torch
from huggingface_hub.dataclasses import type_validator
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import is_deepspeed_available

from evomoe.recipe.recipe import Recipe
from evomoe.recipe.run_folder import StageFolder
from evomoe.support.device import best_device
from evomoe.training.record_order import planned_steps

_OF_MODEL = re.compile("galore|apollo|lomo|adalomo|layerwise")
SCHEDULE = "cosine"
"""How the learning rate falls, unless the user says otherwise."""


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
        if name == "fsdp" and value is True:  # which the Trainer takes, though its type says otherwise
            continue
        accepted = (types[name], *get_args(types[name]))
        is_number = float in accepted and int not in accepted and type(value) is int  # JSON's 1 will do for 1.0
        try:
            type_validator(name, float(value) if is_number else value, types[name])
        except TypeError as error:
            raise ValueError(str(error)) from error
    return options


def training_arguments(recipe: Recipe, stage: int, folder: StageFolder, num_records: int) -> TrainingArguments:
    """The Trainer's arguments for a stage: the recipe's, then the user's."""
    options, given = recipe.stage(stage), trainer_options(recipe, stage)
    steps = planned_steps(recipe, stage, num_records)
    arguments: dict[str, Any] = {
        "output_dir": str(folder.checkpoints),
        "learning_rate": options.learning_rate,
        "num_train_epochs": options.epochs,
        "max_steps": options.steps or -1,
        "per_device_train_batch_size": options.batch_size,
        "gradient_accumulation_steps": options.accumulation,
        "lr_scheduler_type": SCHEDULE,
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
        "logging_nan_inf_filter": False,  # it would show 0 for a loss that is not a number
        "train_sampling_strategy": "group_by_length",
        "use_cpu": best_device().type == "cpu",
        # A tower's last layers may be of no use to any batch. Only the reentrant kind of recomputation cannot do with this.
        "ddp_find_unused_parameters": not _recomputes_reentrantly(given),
    }
    made = TrainingArguments(**arguments | given)
    check_sharding(made)
    return made


def try_optimizer(arguments: TrainingArguments) -> None:
    """Makes the optimizer of one number and its schedule: what these refuse would be found only once a model is loaded.

    Raises:
        ValueError: they cannot be made.
    """
    arguments.get_process_log_level()
    if _OF_MODEL.search(str(arguments.optim)) or arguments.deepspeed:  # made of a whole model
        return
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    optimizer = optimizer_class([torch.nn.Parameter(torch.zeros(1))], **options)
    of_schedule: Any = arguments.lr_scheduler_kwargs
    get_scheduler(arguments.lr_scheduler_type, optimizer, 1, 10, scheduler_specific_kwargs=of_schedule)


def check_sharding(arguments: TrainingArguments) -> None:
    """Raises ValueError for ways to share a model out that would not do so, or would come to a halt."""
    if arguments.fsdp and arguments.use_cpu:
        raise ValueError("fsdp: on a CPU every process would hold the whole model. Leave it out, or train on GPUs.")
    deepspeed = getattr(arguments, "hf_deepspeed_config", None)
    if deepspeed is not None and deepspeed.is_zero3():
        raise ValueError(
            "deepspeed: under ZeRO-3, processes whose records have no picture would wait for the others for ever, and Stage III would "
            "find no whole FFN. Take ZeRO stage 2, or FSDP2 with fsdp=true."
        )


def _recomputes_reentrantly(options: dict[str, Any]) -> bool:
    for name in ("gradient_checkpointing", "activation_checkpointing"):  # the first is transformers' old name
        kwargs = options.get(f"{name}_kwargs")
        if options.get(name) and isinstance(kwargs, dict) and kwargs.get("use_reentrant"):
            return True
    return False
