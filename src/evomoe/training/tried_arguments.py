"""TrainingArguments that would fail later, change nothing in a stage, or let it learn nothing, are refused by their names."""

import copy
import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_utils import SchedulerType

from evomoe.recipe.options import HIGHEST_RATE
from evomoe.support.errors import foreign
from evomoe.support.processes import process_count
from evomoe.support.text import counted, shortened

_OF_MODEL = re.compile("galore|apollo|lomo|adalomo|layerwise")
"""Optimizers that are made of a whole model."""
_PLACES = 100
"""Of a schedule, so many steps are looked at."""
_OF_OPTIMIZERS = ("optim_args", "adam_beta1", "adam_beta2", "adam_epsilon")
_OF_SCHEDULES = ("lr_scheduler_kwargs", "warmup_steps")


def try_arguments(given: Mapping[str, Any], made: TrainingArguments, steps: int, num_records: int) -> None:
    """Tries a stage's arguments, and makes an optimizer of one number.

    Args:
        given: the arguments that the user chose.
        made: all of them.
        steps: of the stage.
        num_records: that a pass of the stage takes.

    Raises:
        ValueError: something cannot be made of an argument, or nothing reads it, or nothing is learned.
    """
    made.get_process_log_level()
    if made.dataloader_drop_last and num_records < (together := made.per_device_train_batch_size * process_count()):
        raise ValueError(
            f"dataloader_drop_last=true drops all {counted(num_records, 'record')} of a pass, for {together:,} are taken at once; leave it "
            "out, or give a smaller `batch_size`."
        )
    _check_idle(given, made)
    if not (_OF_MODEL.search(_value(made.optim)) or made.deepspeed):
        _check_optimizer(given, made, steps)


def _check_idle(given: Mapping[str, Any], made: TrainingArguments) -> None:
    """Raises ValueError for an argument that nothing reads beside the others."""
    alone = {
        "activation_checkpointing_kwargs": (made.gradient_checkpointing, "activation_checkpointing=true"),
        "gradient_checkpointing_kwargs": (made.gradient_checkpointing, "gradient_checkpointing=true"),
        "fsdp_config": (made.fsdp, "fsdp=true"),
        "optim_target_modules": (_OF_MODEL.search(_value(made.optim)), "an optim that reads it: GaLore, Apollo or LOMO"),
        "save_steps": (made.save_strategy == "steps", "save_strategy=steps"),
        "save_total_limit": (made.save_strategy != "no", "save_strategy=steps or save_strategy=epoch"),
        "logging_steps": (made.logging_strategy == "steps", "logging_strategy=steps"),
        "torch_compile_backend": (given.get("torch_compile") is not False, "torch_compile=true"),
        "torch_compile_mode": (given.get("torch_compile") is not False, "torch_compile=true"),
        **dict.fromkeys(
            ("run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
            (made.report_to, "report_to"),
        ),
    }
    for name, (there, needed) in alone.items():
        if given.get(name) and not there:
            raise ValueError(f"{name} says nothing without {needed}; leave it out, or give both.")


def _check_optimizer(given: Mapping[str, Any], made: TrainingArguments, steps: int) -> None:
    """Raises ValueError if optimizer or schedule cannot be made, read nothing of an argument, or give a learning rate that teaches nothing."""
    try:
        optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(made)
    except Exception as error:  # each optimizer has its own ways to fail
        named = f"optim_args={shortened(given['optim_args'])}" if given.get("optim_args") else f"optim={_value(made.optim)}"
        raise ValueError(f"{named}: {foreign(error)}") from error
    for name in _chosen(given, _OF_OPTIMIZERS):
        if Trainer.get_optimizer_cls_and_kwargs(_without(made, name))[1] == options:
            raise ValueError(
                f"{name}={shortened(given[name])}: this optim, {_value(made.optim)}, reads none of it; leave it out."
            )
    optimizer = optimizer_class([torch.nn.Parameter(torch.zeros(1))], **options)
    rates = _rates(made, optimizer, steps)
    for name in _chosen(given, _OF_SCHEDULES):
        asked = {"num_warmup_steps"} if name == "warmup_steps" else {*(made.lr_scheduler_kwargs or {})}
        if not asked & inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(made.lr_scheduler_type)]).parameters.keys():
            raise ValueError(
                f"{name}={shortened(given[name])} says nothing to lr_scheduler_type={_value(made.lr_scheduler_type)}; leave it out."
            )
    for step, rate in rates.items():
        if isinstance(rate, complex) or not 0 <= rate <= HIGHEST_RATE:  # nan is neither
            raise ValueError(
                f"{_named(given)}: the learning rate would be {rate} after {step} of {steps} steps; it must lie between 0 and "
                f"{HIGHEST_RATE:g}."
            )
    if "warmup_steps" in given and (warmup := made.get_warmup_steps(steps)) >= steps:
        raise ValueError(
            f"warmup_steps={given['warmup_steps']} takes {counted(warmup, 'step')}, and the stage has {steps:,}: its learning rate would "
            f"never get to its peak. {'Give fewer, or a share below 1' if steps > 1 else 'Leave it out'}."
        )
    if rates and (highest := max(rates.values())) < made.learning_rate / 2:
        raise ValueError(
            f"{_named(given)}: in {counted(steps, 'step')} the learning rate would get to {highest:g} at the most, and never to "
            f"{made.learning_rate:g}."
        )


def _value(choice: Any) -> str:
    """What a user writes for one of transformers' named choices."""
    return str(getattr(choice, "value", choice))


def _chosen(given: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    """Those of the names that the user gave another value than transformers does."""
    usual = TrainingArguments.__dataclass_fields__
    return [name for name in names if given.get(name) and given[name] != usual[name].default]


def _without(made: TrainingArguments, name: str) -> TrainingArguments:
    other = copy.copy(made)
    setattr(other, name, TrainingArguments.__dataclass_fields__[name].default)
    return other


def _rates(made: TrainingArguments, optimizer: torch.optim.Optimizer, steps: int) -> dict[int, Any]:
    """The learning rate at some of the steps, as far as the schedule is one of functions.

    Raises:
        ValueError: there is no such schedule.
    """
    kwargs: Any = made.lr_scheduler_kwargs
    try:
        if isinstance(kwargs, dict) and any(isinstance(value, float) and not math.isfinite(value) for value in kwargs.values()):
            raise ValueError("its numbers must be finite")
        schedule = get_scheduler(made.lr_scheduler_type, optimizer, made.get_warmup_steps(steps), steps, kwargs)
        places = {*(steps * place // _PLACES for place in range(_PLACES)), steps - 1}
        return {step: made.learning_rate * part(step) for part in getattr(schedule, "lr_lambdas", []) for step in sorted(places)}
    except Exception as error:  # whatever a schedule raises
        raise ValueError(f"lr_scheduler_kwargs={shortened(kwargs or 'nothing')}: {foreign(error)}") from error


def _named(given: Mapping[str, Any]) -> str:
    """What the user gave of the schedule, for a message."""
    names = ("lr_scheduler_type", *_OF_SCHEDULES)
    return ", ".join(f"{name}={shortened(given[name])}" for name in names if name in given) or "lr_scheduler_type"


def steps_between(made: TrainingArguments, what: str, steps: int, per_pass: int) -> float:
    """After how many steps the Trainer saves, or logs, again; infinity for never.

    Args:
        what: "save" or "logging".
        steps: of the stage.
        per_pass: steps of a pass over the data.
    """
    every = getattr(made, f"{what}_steps")
    return {"no": math.inf, "epoch": per_pass, "steps": math.ceil(steps * every) if every < 1 else every}[
        str(getattr(made, f"{what}_strategy").value)
    ]
