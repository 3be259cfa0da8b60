"""The options of a run's parts: the mixture, how a model is converted, evolution, a stage."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from evomoe.recipe.data_mix import Folders, OwnDataNames, single
from evomoe.recipe.named_values import NamedValues
from evomoe.recipe.value_types import check_types
from evomoe.support.errors import OptionError

ImageAspect = Literal["auto", "pad", "keep"]
PictureCheck = Literal["header", "decode"]
OnBadRecord = Literal["stop", "skip"]


MOST_EXPERTS, HIGHEST_RATE, MOST_PASSES, MOST_STEPS, MOST_RECORDS = 4096, 100.0, 1e6, 10**9, 10**6
LONGEST, MOST_WORKERS, MOST_FRAMES = 10**8, 128, 10**4
"""Beyond these no machine holds a mixture, and no run ends or learns."""

VIDEO_FRAMES = 8
"""Frames that are taken of a video, unless the user says otherwise."""

STAGES = {0: "align", 1: "warmup", 2: "evolution", 3: "routing"}


LARGEST_SEED = 2**32 - 1
"""NumPy takes no larger one."""
LARGEST_RANK = 4096
LARGEST_COEFFICIENT = 1e4
"""An auxiliary loss that weighs more drowns the language loss, and then float32."""


_STAGE_OPTION_OF = {
    "learning_rate": "learning_rate",
    "num_train_epochs": "epochs",
    "max_steps": "steps",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulation",
}


_RUN_OPTION_OF = {
    "output_dir": "output",
    "seed": "seed",
    "data_seed": "seed",
    "dataloader_num_workers": "workers",
    "resume_from_checkpoint": "resume",
}


_EVALUATES, _PUBLISHES = (
    "`evomoe eval` scores the trained model",
    "`push_to_hub` of the trained model does, and no token stands in a recipe",
)
_FIXED = {
    "remove_unused_columns": "records have no columns that the model does not use",
    "label_names": "records have labels of one name",
    "length_column_name": "records know their lengths",
    "do_train": "the stages train",
    "auto_find_batch_size": "another batch size takes other records in other steps than the run has planned",
    "ignore_data_skip": "a run that goes on would see records twice",
    "save_only_model": "a run could not go on from such a checkpoint",
    "logging_nan_inf_filter": "a loss that is not a number ends training",
    "disable_tqdm": "the bar is evomoe's own",
    "local_rank": "torchrun says it",
    "use_cache": "training keeps no cache",
    **dict.fromkeys(
        ("use_liger_kernel", "liger_kernel_config"),
        "Liger knows dense families: it would put an FFN of its own in the place of each MoE layer",
    ),
    **dict.fromkeys(
        (
            "batch_eval_metrics", "bf16_full_eval", "do_eval", "do_predict", "eval_accumulation_steps", "eval_delay",
            "eval_do_concat_batches", "eval_on_start", "eval_steps", "eval_strategy", "eval_use_gather_object", "fp16_full_eval",
            "greater_is_better", "include_for_metrics", "load_best_model_at_end", "metric_for_best_model",
            "per_device_eval_batch_size", "prediction_loss_only",
        ),
        _EVALUATES,
    ),
    **dict.fromkeys(
        ("push_to_hub", "hub_always_push", "hub_model_id", "hub_private_repo", "hub_revision", "hub_strategy", "hub_token"), _PUBLISHES
    ),
}  # fmt: skip
"""TrainingArguments that ``trainer`` refuses: each has an option of its own, of the stage or of the run, or only one good value."""


_NUMBERS = {
    "max_grad_norm": (0, False, math.inf),
    "weight_decay": (0, False, 1000),
    "warmup_steps": (0, False, MOST_STEPS),
    "save_steps": (0, True, math.inf),
    "logging_steps": (0, True, math.inf),
    "save_total_limit": (1, False, math.inf),
    "adam_beta1": (0, False, 1),
    "adam_beta2": (0, False, 1),
    "adam_epsilon": (0, True, 1),
    "label_smoothing_factor": (0, False, 1),
    "neftune_noise_alpha": (0, False, 1000),
    "ddp_timeout": (0, True, MOST_STEPS),
    "ddp_bucket_cap_mb": (0, True, MOST_STEPS),
}
"""TrainingArguments that Hugging Face's Trainer takes at any value: the least, whether it must be more, and what it must be less than."""


def check_positive(option: str, value: float, high: float = math.inf) -> None:
    if not 0 < value < math.inf:  # false for nan
        raise OptionError(option, f"{value} must be a positive number.")
    if value > high:
        raise OptionError(option, f"{value:g} is more than any run takes; {high:g} is the most.")


def check_whole(option: str, value: int, low: int, high: float = math.inf, hint: str = "") -> None:
    if type(value) is not int or not low <= value <= high:
        limits = f"of at least {low}" if high == math.inf else f"from {low} to {high}"
        raise OptionError(option, f"{value} must be a whole number {limits}{hint}.")


def check_trainer(option: str, names: dict[str, Any], stages: tuple[int, ...]) -> None:
    for name in names:
        if name in _STAGE_OPTION_OF:
            own = ", ".join(f"`stage{stage}.{_STAGE_OPTION_OF[name]}`" for stage in stages)
            raise OptionError(option, f"{name} has an option of its own; use {own}.")
        if name in _RUN_OPTION_OF:
            raise OptionError(option, f"{name} has an option of its own; use `{_RUN_OPTION_OF[name]}`.")
        if name in _FIXED:
            raise OptionError(option, f"{name} cannot be chosen ({_FIXED[name]}); leave it out.")
        value = names[name]
        if name in _NUMBERS and isinstance(value, int | float) and not isinstance(value, bool):
            low, above, high = _NUMBERS[name]
            if not (low < value if above else low <= value) or not value < high:  # nan is neither
                below = "" if high == math.inf else f" and below {high}"
                raise OptionError(
                    option, f"{name}={value!r} must be a finite number {'above' if above else 'of at least'} {low}{below}."
                )


def check_choice(option: str, value: str, choices: Any) -> None:
    """Raises OptionError if a value is none of a Literal's."""
    *others, last = (repr(choice) for choice in get_args(choices))
    if value not in get_args(choices):
        raise OptionError(option, f"there is no '{value}'; choose {', '.join(others)} or {last}.")


def check_on_bad_record(value: str) -> None:
    """Raises OptionError if there is no such way with bad records."""
    check_choice("on_bad_record", value, OnBadRecord)


def check_image_aspect(value: str) -> None:
    """Raises OptionError if there is no such shape of pictures."""
    check_choice("image_aspect", value, ImageAspect)


@dataclass(frozen=True)
class MoEOptions:
    """What the mixture of experts is; the part of a model's configuration that a user chooses.

    Attributes:
        num_experts: E. Paper: 4.
        num_experts_per_tok: K. Paper: 1.
        router: a row of ``evomoe list routers``. Paper: dtr.
        router_options: options of the router. Those of another one are shown by ``--router NAME --help``.
        gate: what multiplies a chosen expert's output: probability, normalised or straight_through.
        shared_expert: an extra expert that every token passes (Table 6), mixed in by a learned sigmoid that starts at 1/2.
        expert_dropout: during training, hide each expert from a token with this probability (Table 14).
        aux_losses: coefficient of each auxiliary loss. Paper: balance, 0.001, alone; z keeps the router's scores small.
        aux_reduction: how the losses of the layers combine: mean, or sum as MoE-LLaVA does.
        router_gradient: which experts the router learns from: the chosen, as in the paper; all; or auto, which is all while they
            are frozen, else the chosen.
        gradient_experts: the router learns from at most this many experts that a token did not choose, drawn at random at
            each step; 0 for all.
    """

    num_experts: int = 4
    num_experts_per_tok: int = 1
    router: str = "dtr"
    router_options: NamedValues = field(default_factory=dict)
    gate: str = "straight_through"
    shared_expert: bool = False
    expert_dropout: float = 0.0
    aux_losses: NamedValues = field(default_factory=lambda: {"balance": 0.001, "z": 0.0001})
    aux_reduction: Literal["mean", "sum"] = "mean"
    router_gradient: Literal["auto", "chosen", "all"] = "auto"
    gradient_experts: int = 4

    @property
    def router_told(self) -> str:
        """Its router, with what was chosen of the router's options."""
        chosen = ", ".join(f"{name} {value}" for name, value in self.router_options.items())
        return f"{self.router} ({chosen})" if chosen else self.router

    def of_training(self) -> dict[str, Any]:
        """What changes nothing in the network, only what it learns from: a model that is sparse already may train with another value."""
        return {"router_gradient": self.router_gradient, "gradient_experts": self.gradient_experts}

    def __post_init__(self) -> None:
        check_types(self)
        if self.num_experts < 2:
            raise OptionError("num_experts", f"{self.num_experts} is too few; a mixture needs at least 2.")
        check_whole("num_experts", self.num_experts, 2, MOST_EXPERTS)
        if not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise OptionError(
                "num_experts_per_tok",
                f"{self.num_experts_per_tok} (top-k) must lie between 1 and `num_experts`, which is {self.num_experts}.",
            )
        for name, coefficient in self.aux_losses.items():
            is_number = isinstance(coefficient, int | float) and not isinstance(coefficient, bool)
            if not is_number or not 0 <= coefficient <= LARGEST_COEFFICIENT:
                raise OptionError("aux_losses", f"{name}={coefficient!r} must be a number from 0 to {LARGEST_COEFFICIENT:g}.")
        check_whole("gradient_experts", self.gradient_experts, 0, hint="; 0 is all")
        if not 0 <= self.expert_dropout < 1:
            raise OptionError("expert_dropout", f"{self.expert_dropout} must lie in [0, 1).")


@dataclass(frozen=True)
class AttachOptions:
    """What AnyExperts is on a model that is sparse already.

    Attributes:
        k_min: fewest slots of a token; by default around as many real experts as the model has now.
        k_max: most slots of a token.
        gate: what multiplies an expert's output, a row of ``evomoe list gates``; by default what the model does.
        router_options: further options of router anyexperts.
        aux_losses: coefficient of each auxiliary loss, as name=value.
    """

    router: ClassVar[str] = "anyexperts"
    k_min: float | None = None
    k_max: float | None = None
    gate: str = ""
    router_options: NamedValues = field(default_factory=dict)
    aux_losses: NamedValues = field(default_factory=lambda: {"balance": 0.01, "importance": 0.001})

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class ConversionOptions:
    """How a folder is converted, whatever it becomes.

    Attributes:
        dtype: precision of the loaded weights.
        seed: draws the router's weights and the initialiser's noise.
        trust_remote_code: run code from the model's repository.
        remote_code: also write a module that imports evomoe, so that you can load the model without that import. It runs
            only with trust_remote_code=True.
    """

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = 0
    trust_remote_code: bool = False
    remote_code: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check_whole("seed", self.seed, 0, LARGEST_SEED)


@dataclass(frozen=True)
class EvolutionOptions:
    """How experts evolve in Stage II (Eq. 1).

    Attributes:
        rule: a reading of Eq. 1: ema, scaled_update, lookback or literal.
        beta_ranges: low and high per evolved expert; beta is drawn uniformly at every step, low = high fixes it. Paper:
            experts 2, 3, 4 draw from [0.9, 0.99], [0.8, 0.89], [0.7, 0.79].
        stop_fraction: evolved experts stop following expert 1 after this share of Stage II: below 1, they average over steps
            of a high learning rate.
        beta_scope: "step" draws one beta per step for all layers, "layer" one per layer.
        seed: draws the betas.
        offload: keep the evolved experts in CPU memory.
    """

    rule: str = "scaled_update"
    beta_ranges: tuple[tuple[float, float], ...] = ((0.9, 0.99), (0.8, 0.89), (0.7, 0.79))
    stop_fraction: float = 1.0
    beta_scope: Literal["step", "layer"] = "step"
    seed: int = 0
    offload: bool = False

    def check(self, num_experts: int) -> None:
        """Raises OptionError if a value is out of its range, or the ranges of beta are not one per evolved expert."""
        check_types(self)
        if len(self.beta_ranges) != num_experts - 1:
            raise OptionError(
                "beta_ranges",
                f"it has {len(self.beta_ranges)} entries; {num_experts} experts need {num_experts - 1}, a low and a high for each "
                f"expert that evolves from the first, such as{' 0.8 0.9' * (num_experts - 1)}",
            )
        for low, high in self.beta_ranges:
            if not 0 <= low <= high <= 1:
                raise OptionError("beta_ranges", f"[{low}, {high}] must satisfy 0 <= low <= high <= 1.")
        if not 0 <= self.stop_fraction <= 1:
            raise OptionError("stop_fraction", f"{self.stop_fraction} must lie in [0, 1].")
        check_whole("seed", self.seed, 0, LARGEST_SEED)


@dataclass(frozen=True)
class StageOptions:
    """How one stage trains. What has no option here is a TrainingArguments field: give it in ``trainer`` as name=value.

    Attributes:
        learning_rate: peak, after warm-up; cosine decay.
        epochs: passes over the data, when ``steps`` is 0.
        steps: optimiser steps; 0 means "by epochs".
        batch_size: records per device and micro-batch.
        accumulation: micro-batches per optimiser step.
        data: other data than the run's, for this stage only, in the same ways.
        image_root: other folders of pictures than the run's.
        seen_records: how many records of the data were trained on before; the stage begins after them. By default it counts
            what earlier stages of the run take of the same data.
        train: what trains, as parts joined by "+": text, projector, vision, ffn, router, experts.
        lora: rank of low-rank adapters (LoRA), which train in the place of linear maps' weights; 0 trains the weights. They
            are merged at the end of the stage. Routers always train as they are. Stage II takes none.
        lora_alpha: the adapters' outputs count lora_alpha / lora times.
        trainer: further TrainingArguments, as name=value with the value in JSON, e.g. bf16=true.
    """

    learning_rate: float = 2e-5
    epochs: float = 1.0
    steps: int = 0
    batch_size: int = 4
    accumulation: int = 2
    data: OwnDataNames = None
    image_root: Folders = None
    seen_records: int | None = None
    train: str = ""
    lora: int = 0
    lora_alpha: int = 32
    trainer: NamedValues = field(default_factory=dict)

    def check(self) -> None:
        """Raises OptionError if a value cannot be trained with; the recipe checks ``trainer``, which may be about other options."""
        check_types(self)
        for name in ("data", "image_root"):
            object.__setattr__(self, name, single(name, getattr(self, name)))
        check_positive("learning_rate", self.learning_rate, HIGHEST_RATE)
        check_positive("epochs", self.epochs, MOST_PASSES)
        check_whole("steps", self.steps, 0, MOST_STEPS, hint="; 0 trains by epochs")
        check_whole("batch_size", self.batch_size, 1, MOST_RECORDS)
        check_whole("accumulation", self.accumulation, 1, MOST_RECORDS)
        check_whole("lora", self.lora, 0, LARGEST_RANK, hint="; 0 trains the weights")
        check_whole("lora_alpha", self.lora_alpha, 1, LARGEST_RANK)
        if self.seen_records is not None:
            check_whole("seen_records", self.seen_records, 0)
