"""The Trainer's arguments: the recipe's, then the user's."""

import json
import os
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, get_args, get_type_hints

from accelerate.utils import DynamoBackend, parse_flag_from_env
from huggingface_hub.dataclasses import type_validator
from transformers import TrainingArguments
from transformers.integrations import is_deepspeed_available
from transformers.modeling_utils import PreTrainedModel

from evomoe.model.aux_losses import AUX_LOSSES
from evomoe.model.sparse_model import is_sparse
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.run_folder import StageFolder
from evomoe.support.device import best_device
from evomoe.support.needs import needs_of
from evomoe.support.text import shortened
from evomoe.training.record_order import planned_steps

_TABLES: dict[str, dict[str, tuple[Any, ...]]] = {
    **dict.fromkeys(
        ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
        {
            "use_reentrant": (False, True),
            "preserve_rng_state": (True, False),
            "determinism_check": ("default", "none"),
            "early_stop": (True, False),
        },
    ),
    # Others of Accelerate's take other records in a step than the run has planned.
    "accelerator_config": dict.fromkeys(("non_blocking", "use_seedable_sampler", "even_batches"), (True, False)),
}
"""Arguments that are tables: what may stand in them, and its values."""
_WORDS = {
    "dataloader_multiprocessing_context": ("fork", "forkserver", "spawn"),
    "ddp_backend": ("nccl", "gloo", "mpi", "ucc", "xccl", "ccl", "hccl", "cncl", "mccl"),
    "save_strategy": ("steps", "epoch", "no"),
    "torch_compile_backend": tuple(backend.value.lower() for backend in DynamoBackend),
    "torch_compile_mode": ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
}
"""Arguments that name something: what there is, without what needs an evaluation."""
NEW_NAMES = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
"""What newer versions of transformers call arguments; they warn of the old names."""
_OF_WORKERS = ("dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context")
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
        raise ValueError("deepspeed is not installed: pip install 'evomoe[deepspeed]'")
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
            raise ValueError(shortened(error, 200)) from error
        if name in _TABLES and value is not None:
            _check_table(name, value)
    _check_words(options)
    for name in _OF_WORKERS:
        if options.get(name) and not recipe.workers:
            raise ValueError(f"{name} says nothing without `workers`; leave it out, or give both.")
    return options


def _check_table(name: str, values: Any) -> None:
    """Raises ValueError for names or values in an argument that is a table, of which some would be found late and others never."""
    accepted = _TABLES[name]
    if not isinstance(values, dict):
        key, (first, *_) = next(iter(accepted.items()))
        raise ValueError(f"{name}={shortened(values)!r} must be a table, such as {json.dumps({key: first})}.")
    for key, value in values.items():
        if key not in accepted:
            raise ValueError(f"{name} has no '{key}' here; choose of {', '.join(sorted(accepted))}.")
        if type(value) not in (bool, str) or value not in accepted[key]:
            raise ValueError(f"{name}: {key} {shortened(repr(value))} must be {' or '.join(map(json.dumps, accepted[key]))}.")


def _check_words(options: Mapping[str, Any]) -> None:
    """Raises ValueError for a word that names nothing, which transformers would find out only once it trains."""
    for name, choices in _WORDS.items():
        word = options.get(name)
        if word and word not in choices:
            raise ValueError(f"{name}: there is no '{word}' here; choose {', '.join(choices)}.")


def training_arguments(recipe: Recipe, stage: int, folder: StageFolder, num_records: int) -> TrainingArguments:
    """The Trainer's arguments for a stage: the recipe's, then the user's."""
    options, given = recipe.stage(stage), trainer_options(recipe, stage)
    if "LOCAL_RANK" not in os.environ:  # one process has nobody to talk to, and fails to begin
        given = {name: value for name, value in given.items() if name != "ddp_backend"}
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
    made = TrainingArguments(**arguments | _by_new_names(given))
    check_sharding(made)
    if zero_stage(made) == 3:  # otherwise a stage would leave a model without weights
        made.hf_deepspeed_config.config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True
    return made


def _by_new_names(given: Mapping[str, Any]) -> dict[str, Any]:
    """The same arguments under the names that this version of transformers has for them."""
    known = TrainingArguments.__dataclass_fields__
    renamed = {old: new for old, new in NEW_NAMES.items() if new in known and given.get(new) is None}
    return {renamed.get(name, name): value for name, value in given.items() if not (name in NEW_NAMES.values() and value is None)}


def check_sharding(arguments: TrainingArguments) -> None:
    """Raises ValueError for ways to share a model out that would not do so, or would come to a halt."""
    on_cpu = arguments.use_cpu or parse_flag_from_env("ACCELERATE_USE_CPU")
    if arguments.fsdp and on_cpu:
        raise ValueError("fsdp: on a CPU every process would hold the whole model. Leave it out, or train on GPUs.")
    fsdp_config: Any = arguments.fsdp_config
    if arguments.fsdp and "SHARDED" in str((fsdp_config or {}).get("state_dict_type")):
        raise ValueError("fsdp_config: with this state_dict_type a stage would leave a model without weights. Leave it out.")
    if arguments.deepspeed and on_cpu:
        raise ValueError("deepspeed: on a CPU accelerate would leave it out without a word. Leave it out, or train on GPUs.")


def check_shared_out(recipe: Recipe, stage: int, arguments: TrainingArguments, model: PreTrainedModel) -> None:
    """Raises ValueError if what shares a stage's model out cannot do so, or takes away what the stage needs.

    Args:
        model: of the stage, with or without weights.
    """
    single = [name for name, parameter in model.named_parameters() if parameter.dim() == 0]
    for name in ("fsdp", "deepspeed"):
        if getattr(arguments, name) and single:
            raise ValueError(
                f"{name}: it cannot share out a weight of a single number, {single[0]}. Take another `router`, or DDP."
            )
    if arguments.deepspeed and stage == 2 and recipe.evolution.rule == "literal":
        raise ValueError(
            "deepspeed: it has dropped the gradients that `evolution.rule=literal` needs. Take another rule, or DDP."
        )
    losses, zero3 = model.config.moe.aux_losses if is_sparse(model) else {}, zero_stage(arguments) == 3
    again = [name for name in losses if "experts" in needs_of(AUX_LOSSES[name])]
    if again and shares_weights(arguments):
        raise ValueError(
            f"{'deepspeed' if zero3 else 'fsdp'}: the loss '{again[0]}' runs experts that are shared out again by then. Leave it out."
        )
    # Such losses reach weights by another way than the layer's output, with which ZeRO-3 brings them back.
    aside = [name for name in losses if needs_of(AUX_LOSSES[name])]
    if zero3 and aside:
        raise ValueError(
            f"deepspeed: the loss '{aside[0]}' needs weights that ZeRO-3 has taken away. Take ZeRO stage 2, or FSDP2."
        )
    if zero3 and stage == 2 and arguments.hf_deepspeed_config.get_value("zero_optimization.offload_param.device") == "nvme":
        raise ValueError("deepspeed: experts cannot evolve from weights on an NVMe disk. Take `cpu` or leave offload_param out.")


def zero_stage(arguments: TrainingArguments) -> int:
    """Which stage of DeepSpeed's ZeRO shares the model out; 0 for none."""
    config = getattr(arguments, "hf_deepspeed_config", None)
    return config.get_value("zero_optimization.stage", 0) if config else 0


def shares_weights(arguments: TrainingArguments) -> bool:
    """Whether each process holds only a part of the weights: FSDP2, or ZeRO-3."""
    return bool(arguments.fsdp) or zero_stage(arguments) == 3


def live_bytes(arguments: TrainingArguments) -> int:
    """Bytes of gathered weights, of float32, that ZeRO-3 may hold at any one time: it keeps what a layer will soon need again."""
    config: Any = getattr(arguments, "hf_deepspeed_config")  # noqa: B009
    return 4 * int(config.get_value("zero_optimization.stage3_max_live_parameters", 1e9))


def _recomputes_reentrantly(options: dict[str, Any]) -> bool:
    for name in ("gradient_checkpointing", "activation_checkpointing"):
        kwargs = options.get(f"{name}_kwargs")
        if options.get(name) and isinstance(kwargs, dict) and kwargs.get("use_reentrant"):
            return True
    return False
