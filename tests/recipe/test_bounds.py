"""Numbers that no run takes, and TrainingArguments: each is passed on, has an option here, or is refused with a reason."""

import math
import re
from dataclasses import replace
from typing import get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainingArguments

from evomoe.conversion.expert_init import INITS
from evomoe.model.routers import ROUTERS
from evomoe.recipe.named_recipes import EVOMOE
from evomoe.recipe.options import StageOptions
from evomoe.recipe.row_options import read_options
from evomoe.support.errors import OptionError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 1e30),
        ("learning_rate", 101.0),
        ("epochs", 1e18),
        ("steps", 10**12),
        ("batch_size", 10**9),
        ("accumulation", 10**9),
    ],
)
def test_numbers_that_no_run_takes_are_refused(field, value):
    with pytest.raises(OptionError, match=f"^stage1.{field}: .*(is the most|from . to)"):
        EVOMOE.but(stage1=StageOptions(**{field: value}))


@pytest.mark.parametrize(
    "changes", [{"num_experts": 10**6}, {"router_options": {"hypernet_width": 10**9}}, {"router_options": {"cap": math.inf}}]
)
def test_mixtures_that_no_machine_holds_are_refused(changes):
    with pytest.raises(OptionError):
        router = ROUTERS["dtr"]
        recipe = EVOMOE.but(**changes)
        router.read(recipe.moe.router_options, recipe.moe.num_experts)


ENORMOUS = st.sampled_from([10**9, 10**18, -(10**9), 1e30, -1e30, math.nan, math.inf, -math.inf])


@pytest.mark.parametrize("table", [ROUTERS, INITS], ids=["routers", "inits"])
def test_every_number_of_every_row_is_refused_by_its_size(table):
    """A million of anything, and what overflows, before a network is made of it."""
    tried = 0
    for name, row in table.items():
        for option, hint in get_type_hints(row.Options).items():
            if not {int, float} & {hint, *get_args(hint)}:
                continue
            for value in (10**18, -(10**9), 1e30, math.nan, math.inf):
                with pytest.raises(OptionError):
                    read_options(row.Options, {option: value}, f"router '{name}'").check(4)
                    pytest.fail(f"{name}.{option}={value} was taken")
                tried += 1
    assert tried >= 6


@given(
    name=st.sampled_from(
        ["max_length", "workers", "seed", "num_experts", "num_experts_per_tok", "expert_dropout", "stop_fraction"]
    ),
    value=ENORMOUS,
)
def test_every_number_of_a_recipe_is_refused_by_its_size(name, value):
    if name == "seed" and value == 10**9:
        return
    with pytest.raises(OptionError):
        EVOMOE.but(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_grad_norm", math.nan),
        ("max_grad_norm", -1),
        ("save_steps", 0),
        ("save_steps", -1),
        ("weight_decay", math.inf),
        ("logging_steps", 0),
        ("weight_decay", 1e30),
        ("warmup_steps", 1e30),
        ("adam_beta1", -0.5),
        ("adam_beta1", 1),
        ("adam_beta2", math.nan),
        ("adam_beta2", 1e30),
        ("adam_epsilon", 1e30),
        ("label_smoothing_factor", -1),
        ("label_smoothing_factor", 1.0),
        ("neftune_noise_alpha", math.inf),
        ("ddp_timeout", -1),
    ],
)
def test_numbers_of_the_trainer_that_it_would_take_are_refused(name, value):
    for changes in ({"trainer": {name: value}}, {"stage2": replace(EVOMOE.stage2, trainer={name: value})}):
        with pytest.raises(OptionError, match=f"trainer: {name}=.* must be a finite number"):
            EVOMOE.but(**changes)


TRAINER_REFUSES = {
    "learning_rate": "use `stage{n}.learning_rate`", "num_train_epochs": "use `stage{n}.epochs`", "max_steps": "use `stage{n}.steps`",
    "per_device_train_batch_size": "use `stage{n}.batch_size`", "gradient_accumulation_steps": "use `stage{n}.accumulation`",
    "seed": "use `seed`", "data_seed": "use `seed`", "dataloader_num_workers": "use `workers`", "output_dir": "use `output`",
    "resume_from_checkpoint": "use `resume`", "remove_unused_columns": "leave it out", "use_liger_kernel": "leave it out", "eval_strategy": "`evomoe eval`",
}  # fmt: skip


PASSED_ON = [
    "accelerator_config",
    "activation_checkpointing",
    "activation_checkpointing_kwargs",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "average_tokens_across_devices",
    "bf16",
    "dataloader_drop_last",
    "dataloader_in_order",
    "dataloader_multiprocessing_context",
    "dataloader_persistent_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "ddp_backend",
    "ddp_broadcast_buffers",
    "ddp_bucket_cap_mb",
    "ddp_find_unused_parameters",
    "ddp_static_graph",
    "ddp_timeout",
    "debug",
    "deepspeed",
    "enable_jit_checkpoint",
    "fp16",
    "fsdp",
    "fsdp_config",
    "full_determinism",
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
    "include_num_input_tokens_seen",
    "label_smoothing_factor",
    "log_level",
    "log_level_replica",
    "log_on_each_node",
    "logging_first_step",
    "logging_steps",
    "logging_strategy",
    "lr_scheduler_kwargs",
    "lr_scheduler_type",
    "max_grad_norm",
    "neftune_noise_alpha",
    "optim",
    "optim_args",
    "optim_target_modules",
    "parallelism_config",
    "project",
    "report_to",
    "restore_callback_states_from_checkpoint",
    "run_name",
    "save_on_each_node",
    "save_steps",
    "save_strategy",
    "save_total_limit",
    "skip_memory_metrics",
    "tf32",
    "torch_compile",
    "torch_compile_backend",
    "torch_compile_mode",
    "torch_empty_cache_steps",
    "trackio_bucket_id",
    "trackio_space_id",
    "trackio_static_space_id",
    "train_sampling_strategy",
    "use_cpu",
    "warmup_steps",
    "weight_decay",
]


def test_every_argument_of_the_trainer_was_looked_at():
    """Each is passed on, has an option here, or is refused with a reason: a new one of transformers has to be looked at."""
    refused = []
    for name in TrainingArguments.__dataclass_fields__:
        try:
            EVOMOE.but(trainer={name: "x"})
        except OptionError as error:
            assert re.search("has an option of its own|cannot be chosen", str(error)), name
            refused.append(name)
    assert sorted(TrainingArguments.__dataclass_fields__.keys() - {*refused} - {*PASSED_ON}) == []
    assert not {*refused} & {*PASSED_ON}


@pytest.mark.parametrize(("name", "remedy"), TRAINER_REFUSES.items())
def test_the_trainer_s_options_are_those_without_an_option_of_their_own(name, remedy):
    with pytest.raises(ValueError, match=f"^stage2.trainer: {name} .*{remedy.format(n=2)}"):
        EVOMOE.but(stage2=replace(EVOMOE.stage2, trainer={name: 1}))
    with pytest.raises(ValueError, match=f"^trainer: {name} .*{remedy.format(n=1)}"):
        EVOMOE.but(trainer={"bf16": True, name: 1})
