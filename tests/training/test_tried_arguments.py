"""TrainingArguments that together do nothing of what was asked are refused, or said, before a run starts."""

import logging
from dataclasses import replace

import pytest
from small_runs import make_recipe
from transformers import TrainingArguments

from evomoe import cli
from evomoe.recipe.run_folder import RunFolder
from evomoe.support.errors import OptionError
from evomoe.training import arguments as training_arguments
from evomoe.training.checked_run import check_run
from evomoe.training.dry_run import describe
from evomoe.training.run import run
from evomoe.training.trainer import EvoMoETrainer
from evomoe.training.tried_arguments import try_arguments

CHECKPOINTING = training_arguments.NEW_NAMES["gradient_checkpointing"]
if CHECKPOINTING not in TrainingArguments.__dataclass_fields__:  # of an older transformers
    CHECKPOINTING = "gradient_checkpointing"
IDLE = [
    {"save_strategy": "no", "save_steps": 5},
    {"save_strategy": "epoch", "save_steps": 5},
    {"save_strategy": "no", "save_total_limit": 3},
    {"logging_strategy": "no", "logging_steps": 5},
    {"logging_strategy": "epoch", "logging_steps": 5},
    {f"{CHECKPOINTING}_kwargs": {"use_reentrant": False}},
    {CHECKPOINTING: False, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    {"dataloader_prefetch_factor": 4},
    {"dataloader_multiprocessing_context": "fork"},
    {"dataloader_persistent_workers": True},
    {"fsdp_config": {"min_num_params": 1}},
    {"run_name": "mine"},
    {"project": "mine"},
    {"torch_compile": False, "torch_compile_mode": "default"},
    {"torch_compile": False, "torch_compile_backend": "inductor"},
    {"optim": "sgd", "adam_beta1": 0.8},
    {"optim": "adafactor", "adam_epsilon": 1e-5},
    {"optim": "sgd", "adam_beta2": 0.9, "adam_beta1": 0.9},
    {"optim": "sgd", "optim_args": "momentun=0.9"},
    {"optim_target_modules": "mlp"},
    {"optim": "adafactor", "optim_target_modules": "mlp"},
    {"lr_scheduler_type": "constant", "warmup_steps": 3},
    {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"min_lr": 1e-6}},
    {"lr_scheduler_type": "constant_with_warmup", "lr_scheduler_kwargs": {"num_cycles": 3}},
]
TOO_LONG = [
    {"warmup_steps": 500},
    {"warmup_steps": 6},
    {"warmup_steps": 6, "lr_scheduler_type": "linear"},
    {"warmup_steps": 9, "lr_scheduler_type": "constant_with_warmup"},
    {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 1000}},
]
GOOD = [
    {"save_strategy": "no"},
    {"save_strategy": "epoch", "save_total_limit": 1},
    {"save_steps": 0.25},
    {"warmup_steps": 0.1},
    {"warmup_steps": 5},
    {"lr_scheduler_type": "constant"},
    {"lr_scheduler_type": "constant", "warmup_steps": 0},
    {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 0.0}},
    {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 1.0}},  # the usual value
    {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 1}},
    {"optim": "adamw_torch", "adam_beta2": 0.95},
    {"optim": "sgd", "adam_beta1": 0.9},  # the usual value
    {"torch_compile_mode": "default"},
    {"dataloader_persistent_workers": False},
    {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": False}},
    {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
]


@pytest.mark.parametrize("trainer", IDLE, ids=str)
@pytest.mark.parametrize("of_stage", [False, True])
def test_what_nothing_would_read_is_refused_by_its_name(workspace, trainer, of_stage):
    recipe = make_recipe(workspace, stages=(1,), steps=6)
    own = replace(recipe.stage1, trainer=trainer if of_stage else {})
    recipe = recipe.but(stage1=own, trainer={} if of_stage else trainer)
    option = "stage1.trainer" if of_stage else "trainer"
    with pytest.raises(OptionError, match=f"^{option}: TrainingArguments of stage 1: ({'|'.join(trainer)})") as refused:
        check_run(recipe)
    assert "leave it out" in str(refused.value) or "without" in str(refused.value)


@pytest.mark.parametrize("trainer", TOO_LONG, ids=str)
@pytest.mark.parametrize("by", ["steps", "epochs"])
def test_a_learning_rate_that_never_gets_to_its_peak_is_refused_once_the_steps_are_known(workspace, monkeypatch, trainer, by):
    """24 records by 4 are 6 steps, which only the data say where passes are counted."""
    monkeypatch.setattr(EvoMoETrainer, "training_step", lambda *args, **kwargs: pytest.fail("trained first"))
    recipe = make_recipe(workspace, stages=(1,))
    length = {"steps": 6} if by == "steps" else {"steps": 0, "epochs": 1.0}
    recipe = recipe.but(stage1=replace(recipe.stage1, accumulation=1, trainer={}, **length), trainer=trainer)
    for start in (describe, run):
        with pytest.raises(OptionError, match=r"^trainer: TrainingArguments of stage 1: .* never"):
            start(recipe)
    assert not (workspace / "run" / "stage1_warmup").exists()


@pytest.mark.parametrize("length", [{"steps": 2}, {"steps": 0, "epochs": 2.0}], ids=str)
def test_data_of_which_every_batch_would_be_dropped_are_refused(workspace, monkeypatch, length):
    """The Trainer would end at once, and a model that was not trained would be written."""
    monkeypatch.setattr(EvoMoETrainer, "train", lambda *args, **kwargs: pytest.fail("trained first"))
    recipe = make_recipe(workspace, stages=(1,))
    recipe = recipe.but(stage1=replace(recipe.stage1, batch_size=25, trainer={"dataloader_drop_last": True}, **length))
    for start in (describe, run):
        with pytest.raises(OptionError, match="^stage1.trainer: .* dataloader_drop_last=true drops all 24 records"):
            start(recipe)


@pytest.mark.parametrize("trainer", GOOD, ids=str)
def test_what_does_something_passes(workspace, trainer):
    recipe = make_recipe(workspace, stages=(1,), steps=6)
    assert describe(recipe.but(stage1=replace(recipe.stage1, trainer={}), trainer=trainer))


@pytest.mark.parametrize(
    ("trainer", "said"),
    [
        ({"save_strategy": "no"}, "with save_strategy=no it writes no checkpoint on its way"),
        ({"save_steps": 4}, "with save_steps=4 it writes no checkpoint on its way"),
        ({"save_strategy": "epoch"}, "writes no checkpoint"),
        ({"logging_strategy": "no", "save_steps": 1}, "with logging_strategy=no it logs no loss"),
        ({"logging_steps": 100, "save_steps": 1}, "with logging_steps=100 it logs no loss"),
    ],
)
def test_what_never_happens_on_the_way_is_said_and_the_run_ends_well(workspace, caplog, trainer, said):
    recipe = make_recipe(workspace, stages=(1,), steps=2)
    recipe = recipe.but(stage1=replace(recipe.stage1, trainer=trainer))
    assert said in describe(recipe)
    with caplog.at_level(logging.WARNING):
        assert run(recipe).is_dir()
    assert said in caplog.text and (workspace / "run" / "report.md").is_file()


def test_a_run_without_checkpoints_that_was_killed_says_that_it_begins_anew(workspace, monkeypatch, caplog):
    recipe = make_recipe(workspace, stages=(1,), steps=4)
    recipe = recipe.but(stage1=replace(recipe.stage1, trainer={"save_strategy": "no", "logging_steps": 1}))
    step = EvoMoETrainer.training_step

    def dies(self, *args, **kwargs):
        if self.state.global_step == 2:
            raise MemoryError("killed")
        return step(self, *args, **kwargs)

    monkeypatch.setattr(EvoMoETrainer, "training_step", dies)
    with pytest.raises(MemoryError):
        run(recipe)
    monkeypatch.setattr(EvoMoETrainer, "training_step", step)
    run(recipe, resume=True)
    assert "has no checkpoint yet: it begins at the beginning" in caplog.text
    steps = [entry["step"] for entry in RunFolder(recipe.output).logged() if "loss" in entry]
    assert steps == [1, 2, 3, 4]


def test_the_command_line_names_the_flag(workspace, capsys):
    arguments = ["train", "--model", str(workspace / "model"), "--data", str(workspace / "data.json")]
    arguments += ["--output", str(workspace / "run"), "--image-root", str(workspace / "images"), "--stages", "1"]
    assert cli.main([*arguments, "--stage1.steps", "5", "--trainer", "warmup_steps=10"]) == 1
    assert capsys.readouterr().err == (
        "evomoe: --trainer: TrainingArguments of stage 1: warmup_steps=10 takes 10 steps, and the stage has 5: its learning rate would "
        "never get to its peak. Give fewer, or a share below 1.\n"
    )


def test_optimizers_that_ask_for_modules_may_have_them():
    made = TrainingArguments(optim="galore_adamw", optim_target_modules=["mlp"], report_to=[])
    try_arguments({"optim": "galore_adamw", "optim_target_modules": ["mlp"]}, made, 10, 24)


def test_a_schedule_that_one_step_does_not_show_passes(workspace):
    made = TrainingArguments(lr_scheduler_type="polynomial", lr_scheduler_kwargs={"power": 2.0}, report_to=[], use_cpu=True)
    try_arguments({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2.0}}, made, 1, 24)


def test_a_share_of_one_step_is_not_advised_against_by_itself(workspace):
    recipe = make_recipe(workspace, stages=(1,), steps=1).but(trainer={"warmup_steps": 0.03})
    with pytest.raises(OptionError, match="never get to its peak. Leave it out."):
        describe(recipe.but(stage1=replace(recipe.stage1, trainer={})))


@pytest.mark.parametrize("old", training_arguments.NEW_NAMES)
def test_old_names_of_arguments_mean_the_new_ones_and_bring_no_warning(workspace, recwarn, old):
    value = True if old == "gradient_checkpointing" else {"use_reentrant": False}
    recipe = make_recipe(workspace, stages=(1,)).but(trainer={"gradient_checkpointing": True} | {old: value})
    made = training_arguments.training_arguments(recipe, 1, RunFolder(workspace / "run").stage(1), 24)
    assert getattr(made, old) == value and made.gradient_checkpointing is True
    assert not [warning for warning in recwarn if "checkpointing" in str(warning.message)]
