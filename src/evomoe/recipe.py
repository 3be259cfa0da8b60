"""A run, as data. Needs neither torch nor transformers, so that it loads in milliseconds.

Implements: Table 7 (defaults of the stages).
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

from evomoe.files import write_text
from evomoe.init_options import option_from_stage2
from evomoe.named_values import NamedValues
from evomoe.placement import parse_placement
from evomoe.support.errors import OptionError, within

ImageAspect = Literal["auto", "pad", "keep"]

STAGES = {0: "align", 1: "warmup", 2: "evolution", 3: "routing"}

LARGEST_SEED = 2**32 - 1
"""NumPy takes no larger one."""

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
_FIXED = {
    "remove_unused_columns": "records have no columns that the model does not use",
    "eval_strategy": "`evomoe eval` scores the trained model",
}
"""TrainingArguments that ``trainer`` refuses: each has an option of its own, of the stage or of the run, or only one good value."""


def _check_positive(option: str, value: float) -> None:
    if not 0 < value < math.inf:  # false for nan
        raise OptionError(option, f"{value} must be a positive number.")


def _check_whole(option: str, value: int, low: int, high: float = math.inf, hint: str = "") -> None:
    if type(value) is not int or not low <= value <= high:
        limits = f"of at least {low}" if high == math.inf else f"from {low} to {high}"
        raise OptionError(option, f"{value} must be a whole number {limits}{hint}.")


def _check_trainer(option: str, names: dict[str, Any], stages: tuple[int, ...]) -> None:
    for name in names:
        if name in _STAGE_OPTION_OF:
            own = ", ".join(f"`stage{stage}.{_STAGE_OPTION_OF[name]}`" for stage in stages)
            raise OptionError(option, f"{name} has an option of its own; use {own}.")
        if name in _RUN_OPTION_OF:
            raise OptionError(option, f"{name} has an option of its own; use `{_RUN_OPTION_OF[name]}`.")
        if name in _FIXED:
            raise OptionError(option, f"{name} cannot be chosen ({_FIXED[name]}); leave it out.")


def check_on_bad_record(value: str) -> None:
    """Raises OptionError if there is no such way with bad records."""
    if value not in ("stop", "skip"):
        raise OptionError("on_bad_record", f"there is no '{value}'; choose 'stop' or 'skip'.")


def check_image_aspect(value: str) -> None:
    """Raises OptionError if there is no such shape of pictures."""
    if value not in get_args(ImageAspect):
        raise OptionError("image_aspect", f"there is no '{value}'; choose 'auto', 'pad' or 'keep'.")


@dataclass(frozen=True)
class MoEOptions:
    """What the mixture of experts is; the part of a model's configuration that a user chooses.

    Attributes:
        num_experts: E. Paper: 4.
        num_experts_per_tok: K. Paper: 1.
        router: a row of ``evomoe list routers``. Paper: dtr.
        router_options: keyword arguments of that router, e.g. hypernet_width and rank of dtr.
        gate: what multiplies a chosen expert's output: probability, normalised or straight_through.
        shared_expert: an extra expert that every token passes (Table 6), mixed in by a learned sigmoid that starts at 1/2.
        expert_dropout: during training, hide each expert from a token with this probability (Table 14).
        aux_losses: coefficient of each auxiliary loss. Paper: balance, 0.001.
        aux_reduction: how the losses of the layers combine: mean, or sum as MoE-LLaVA does.
    """

    num_experts: int = 4
    num_experts_per_tok: int = 1
    router: str = "dtr"
    router_options: NamedValues = field(default_factory=dict)
    gate: str = "straight_through"
    shared_expert: bool = False
    expert_dropout: float = 0.0
    aux_losses: NamedValues = field(default_factory=lambda: {"balance": 0.001})
    aux_reduction: str = "mean"

    def __post_init__(self) -> None:
        if self.num_experts < 2:
            raise OptionError("num_experts", f"{self.num_experts} is too few; a mixture needs at least 2.")
        if not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise OptionError(
                "num_experts_per_tok",
                f"{self.num_experts_per_tok} (top-k) must lie between 1 and `num_experts`, which is {self.num_experts}.",
            )
        for name, coefficient in self.aux_losses.items():
            if not isinstance(coefficient, int | float) or not 0 <= coefficient < math.inf:
                raise OptionError("aux_losses", f"{name}={coefficient!r} must be a finite number that is not negative.")
        if not 0 <= self.expert_dropout < 1:
            raise OptionError("expert_dropout", f"{self.expert_dropout} must lie in [0, 1).")


@dataclass(frozen=True)
class AttachOptions:
    """What AnyExperts is on a model that is sparse already.

    Attributes:
        k_min: fewest slots of a token; by default around as many real experts as the model has now.
        k_max: most slots of a token.
        gate: what multiplies an expert's output; by default what the model does.
        router_options: further options of router anyexperts, as name=value.
        aux_losses: coefficient of each auxiliary loss, as name=value.
    """

    k_min: float | None = None
    k_max: float | None = None
    gate: Literal["", "probability", "normalised", "straight_through"] = ""
    router_options: NamedValues = field(default_factory=dict)
    aux_losses: NamedValues = field(default_factory=lambda: {"balance": 0.01, "importance": 0.001})


@dataclass(frozen=True)
class ConversionOptions:
    """How a folder is converted, whatever it becomes.

    Attributes:
        dtype: precision of the loaded weights.
        seed: draws the router's weights and the initialiser's noise.
        trust_remote_code: run code from the model's repository.
        remote_code: also write the module through which transformers loads the model where evomoe is installed but not
            imported; it runs only for those who load with trust_remote_code=True.
    """

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = 0
    trust_remote_code: bool = False
    remote_code: bool = False


@dataclass(frozen=True)
class EvolutionOptions:
    """How experts evolve in Stage II (Eq. 1).

    Attributes:
        rule: a reading of Eq. 1: ema, scaled_update, lookback or literal.
        beta_ranges: low and high per evolved expert; beta is drawn uniformly at every step, low = high fixes it. Paper:
            experts 2, 3, 4 draw from [0.9, 0.99], [0.8, 0.89], [0.7, 0.79].
        stop_fraction: evolved experts stop following after this share of Stage II, so that an average is taken while the
            learning rate is still high.
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
        if self.beta_scope not in ("step", "layer"):
            raise OptionError("beta_scope", f"there is no '{self.beta_scope}'; choose 'step' or 'layer'.")
        _check_whole("seed", self.seed, 0, LARGEST_SEED)


@dataclass(frozen=True)
class StageOptions:
    """How one stage trains. What has no option here is a TrainingArguments field: give it in ``trainer`` as name=value.

    Attributes:
        learning_rate: peak, after warm-up; cosine decay.
        epochs: passes over the data, when ``steps`` is 0.
        steps: optimiser steps; 0 means "by epochs".
        batch_size: records per device and micro-batch.
        accumulation: micro-batches per optimiser step.
        data: other data than the run's, for this stage only.
        train: what trains, as parts joined by "+": see ``evomoe.stages.trainable``.
        trainer: further TrainingArguments, as name=value with the value in JSON, e.g. bf16=true.
    """

    learning_rate: float = 2e-5
    epochs: float = 1.0
    steps: int = 0
    batch_size: int = 4
    accumulation: int = 2
    data: str | None = None
    train: str = ""
    trainer: NamedValues = field(default_factory=dict)

    def check(self) -> None:
        """Raises OptionError if a value cannot be trained with; the recipe checks ``trainer``, which may be about other options."""
        _check_positive("learning_rate", self.learning_rate)
        _check_positive("epochs", self.epochs)
        _check_whole("steps", self.steps, 0, hint="; 0 trains by epochs")
        _check_whole("batch_size", self.batch_size, 1)
        _check_whole("accumulation", self.accumulation, 1)


@dataclass(frozen=True)
class Recipe:
    """One run of ``evomoe train``.

    Attributes:
        model: dense VLM: a folder or a hub name.
        data: LLaVA JSON, JSON lines, a folder of ``datasets.save_to_disk`` or a hub dataset ("name" or "name:split").
        output: run folder; must be new, or hold a run without a checkpoint, or with ``resume`` an unfinished run of this recipe.
        image_root: folder that the records' image paths are relative to.
        stages: which of 0 (align the projector), 1 (warm-up), 2 (expert evolution), 3 (routing) run.
        moe_layers: "alternating", "all", "without_first", or indices separated by commas.
        expert_init: where Stage III's experts come from; "evolved" needs Stage II.
        init_options: keyword arguments of that initialiser.
        max_length: tokens per record; longer ones are cut, and counted.
        max_pixels: larger pictures are refused.
        image_aspect: "pad" pads pictures to a square first, as LLaVA-1.5 does; "keep" does not; "auto" pads where the processor
            would crop them.
        on_bad_record: "stop" before training, or "skip" and list.
        dtype: precision of the loaded weights: float32, bfloat16 or auto. Mixed precision is ``trainer`` bf16=true.
        workers: processes that decode images; 0 decodes in the main process.
        seed: of data order, router weights and dropout.
        trust_remote_code: run code from the model's repository.
        allow_collapsed_experts: let Stage III start on experts that are all alike.
        trainer: further TrainingArguments for every stage, as name=value.
    """

    model: str
    data: str
    output: str
    image_root: str | None = None
    stages: tuple[int, ...] = (1, 2, 3)
    moe_layers: str = "alternating"
    expert_init: str = "evolved"
    init_options: NamedValues = field(default_factory=dict)
    moe: Annotated[MoEOptions, tyro.conf.arg(name="")] = field(default_factory=MoEOptions)
    evolution: EvolutionOptions = field(default_factory=EvolutionOptions)
    stage0: StageOptions = field(
        default_factory=lambda: StageOptions(learning_rate=1e-3, batch_size=32, accumulation=8, train="projector")
    )
    stage1: StageOptions = field(default_factory=lambda: StageOptions(batch_size=4, accumulation=64, train="text+projector"))
    stage2: StageOptions = field(default_factory=lambda: StageOptions(batch_size=4, accumulation=16, train="ffn"))
    stage3: StageOptions = field(default_factory=lambda: StageOptions(batch_size=4, accumulation=16, train="router"))
    max_length: int = 2048
    max_pixels: int = 89_478_485
    image_aspect: ImageAspect = "auto"
    on_bad_record: Literal["stop", "skip"] = "stop"
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    workers: int = 0
    seed: int = 0
    trust_remote_code: bool = False
    allow_collapsed_experts: bool = False
    trainer: NamedValues = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = [stage for stage in self.stages if stage not in STAGES]
        if unknown or not self.stages or list(self.stages) != sorted(set(self.stages)):
            raise OptionError("stages", f"{list(self.stages)} must be some of {list(STAGES)}, each once, in order.")
        # Here and not in the parts themselves: only the recipe knows under which name a part's options are given.
        for stage in STAGES:
            with within(f"stage{stage}"):
                self.stage(stage).check()
            _check_trainer(f"stage{stage}.trainer", self.stage(stage).trainer, (stage,))
        _check_trainer("trainer", self.trainer, self.stages)
        if 2 in self.stages:
            unused = 3 in self.stages and not option_from_stage2(self.expert_init)
            if unused and len(self.evolution.beta_ranges) != self.moe.num_experts - 1:
                others = " ".join(str(stage) for stage in self.stages if stage != 2)
                raise OptionError(
                    "expert_init", f"'{self.expert_init}' takes no experts from Stage II; leave it out: `stages={others}`."
                )
            with within("evolution"):
                self.evolution.check(self.moe.num_experts)
        if self.stages != (3,):  # which may go on with a sparse model, and then makes no experts
            self.check_expert_init()
        if (
            3 in self.stages
            and self.moe.gate == "normalised"
            and self.moe.num_experts_per_tok == 1
            and self.stage3.train == "router"
        ):
            raise OptionError(
                "gate",
                "'normalised' with one expert per token multiplies by 1: the router, which alone trains in Stage III, would get "
                "no gradient from the language loss. Choose 'straight_through' or 'probability', or `num_experts_per_tok=2`.",
            )
        check_on_bad_record(self.on_bad_record)
        check_image_aspect(self.image_aspect)
        _check_whole("max_length", self.max_length, 1)
        _check_whole("max_pixels", self.max_pixels, 1)
        _check_whole("workers", self.workers, 0)
        _check_whole("seed", self.seed, 0, LARGEST_SEED)

    def but(self, **changes: Any) -> "Recipe":
        """A copy with some fields changed; those of ``moe`` and ``evolution`` by their own names: ``but(router="linear")``."""
        for part in ("moe", "evolution"):
            owned = {f.name for f in dataclasses.fields(getattr(self, part))} - {f.name for f in dataclasses.fields(self)}
            inner = {name: changes.pop(name) for name in list(changes) if name in owned}
            if inner:
                changes[part] = dataclasses.replace(changes.get(part, getattr(self, part)), **inner)
        return dataclasses.replace(self, **changes)

    def stage(self, number: int) -> StageOptions:
        """The options of one stage."""
        return getattr(self, f"stage{number}")

    def check_expert_init(self) -> None:
        """Raises ValueError if Stage III is to make experts of what nothing gives it."""
        needed = option_from_stage2(self.expert_init)
        if 3 in self.stages and needed and 2 not in self.stages and needed not in self.init_options:
            raise OptionError(
                "expert_init",
                f"'{self.expert_init}' needs Stage II in the same run, or the file that another run's Stage II wrote: "
                f"`init_options={needed}=FILE`; or choose another `expert_init`.",
            )

    def placement(self) -> str | list[int]:
        """``moe_layers`` as ``evomoe.placement`` takes it."""
        return parse_placement(self.moe_layers)

    def save(self, path: str | Path) -> None:
        """Writes recipe.json."""
        write_text(path, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Recipe":
        """Reads recipe.json.

        Raises:
            ValueError: it is no recipe of this version, or no JSON; the message names the file.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            missing = {f.name for f in dataclasses.fields(cls)} - set(values)
            if missing:
                raise TypeError(f"it lacks {', '.join(sorted(missing))}")
            parts = {"moe": MoEOptions, "evolution": EvolutionOptions} | {f"stage{n}": StageOptions for n in STAGES}
            for name, part in parts.items():
                values[name] = part(**_tuples(values[name]))
            return cls(**_tuples(values))
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no recipe of this version: {error}.") from error

    def differences(self, other: "Recipe") -> list[str]:
        """Names the fields in which two recipes differ, but for where the run lies and how many processes read its pictures."""
        mine, theirs = ({**dataclasses.asdict(recipe), "output": "", "workers": 0} for recipe in (self, other))
        return [f"{name}: {theirs[name]!r} -> {mine[name]!r}" for name in mine if mine[name] != theirs[name]]


def _tuples(values: Any) -> Any:
    """Lists, as JSON gives them, to tuples; the inside of a dict is the user's own and stays."""
    if isinstance(values, dict):
        return {name: value if isinstance(value, dict) else _tuples(value) for name, value in values.items()}
    return tuple(_tuples(value) for value in values) if isinstance(values, list) else values
