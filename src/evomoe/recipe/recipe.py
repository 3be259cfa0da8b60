"""A run, as data. Needs neither torch nor transformers, so that it loads in milliseconds.

Implements: Table 7 (defaults of the stages).
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from evomoe.recipe.data_mix import DataNames, DataSource, Folders, data_sources, single
from evomoe.recipe.init_options import option_from_stage2
from evomoe.recipe.named_values import NamedValues
from evomoe.recipe.options import (
    LARGEST_SEED,
    LONGEST,
    MOST_FRAMES,
    MOST_RECORDS,
    MOST_WORKERS,
    STAGES,
    VIDEO_FRAMES,
    EvolutionOptions,
    ImageAspect,
    MoEOptions,
    OnBadRecord,
    PictureCheck,
    StageOptions,
    check_image_aspect,
    check_on_bad_record,
    check_trainer,
    check_whole,
)
from evomoe.recipe.placement import parse_placement
from evomoe.recipe.value_types import check_names, check_types
from evomoe.support.errors import OptionError, within
from evomoe.support.files import write_text
from evomoe.support.names import only_streamed
from evomoe.support.parse_json import read_json
from evomoe.support.yaml_text import read_yaml

YAML = (".yaml", ".yml")
_PARTS = {"moe": MoEOptions, "evolution": EvolutionOptions} | {f"stage{n}": StageOptions for n in STAGES}
_OF_BAD_RECORDS = ("on_bad_record", "check_pictures")


@dataclass(frozen=True)
class Recipe:
    """One run of ``evomoe train``.

    Attributes:
        model: dense VLM: a folder or a hub name.
        data: LLaVA JSON, JSON lines, a folder of ``datasets.save_to_disk`` or a hub dataset ("name" or "name:split"). Several make a mix,
            each with a weight: "b.json:0.5" takes half of its records in a pass, "b.json:2" each twice.
        output: folder for this run. It must be new, or hold a run that got to no checkpoint; with ``resume``, an unfinished
            run of this recipe.
        image_root: folder that the records' image paths are relative to. A mix may have one for each source, '' for a source without.
        stages: which of 0 (align the projector), 1 (warm-up), 2 (expert evolution), 3 (routing) run.
        moe_layers: "alternating", "all", "without_first", or indices separated by commas.
        expert_init: where Stage III's experts come from; "evolved" needs Stage II.
        init_options: keyword arguments of that initialiser.
        streaming: reads the data as streams, shuffled within so many records, such as 1000; 0 reads them whole. Streams may be larger
            than the disk. Each stage needs ``steps``. Sources may also be files of webdataset (.tar) or .parquet: one, a folder,
            "part-*.tar" or "{000..099}.tar". A weight is a source's share of the records.
        max_length: tokens per record; longer ones are cut, and counted.
        packing: lets records of a batch share rows where they fit, each as if it were alone: less padding, the same loss.
        max_pixels: larger pictures are refused.
        image_aspect: "pad" pads pictures to a square first, as LLaVA-1.5 does; "keep" does not; "auto" pads where the processor
            would crop them.
        video_frames: how many frames are taken of each video.
        on_bad_record: "stop" before training, or "skip" and list.
        check_pictures: "header" looks whether files are whole, and decodes those whose formats cannot say; "decode" decodes all before training.
        template_options: arguments of the model's chat template, as name=value, e.g. enable_thinking=false.
        allow_special_tokens: special tokens that may stand in texts, such as <box> or <loc*> with a star for anything; answers show them.
        dtype: precision of the loaded weights: float32, bfloat16 or auto. Mixed precision is ``trainer`` bf16=true.
        workers: processes that check records and decode images; 0 does both in the main process.
        seed: of data order, router weights and dropout.
        trust_remote_code: run code from the model's repository.
        allow_collapsed_experts: let Stage III start on experts that are all alike.
        trainer: further TrainingArguments for every stage, as name=value.
    """

    model: str
    data: DataNames
    output: str
    image_root: Folders = None
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
    streaming: int = 0
    max_length: int = 2048
    packing: bool = False
    max_pixels: int = 89_478_485
    image_aspect: ImageAspect = "auto"
    video_frames: int = VIDEO_FRAMES
    on_bad_record: OnBadRecord = "stop"
    check_pictures: PictureCheck = "header"
    template_options: NamedValues = field(default_factory=dict)
    allow_special_tokens: tuple[str, ...] = ()
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    workers: int = 0
    seed: int = 0
    trust_remote_code: bool = False
    allow_collapsed_experts: bool = False
    trainer: NamedValues = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("data", "image_root"):
            object.__setattr__(self, name, single(name, getattr(self, name)))
        unknown = [stage for stage in self.stages if stage not in STAGES]
        if unknown or not self.stages or list(self.stages) != sorted(set(self.stages)):
            raise OptionError("stages", f"{list(self.stages)} must be some of {list(STAGES)}, each once, in order.")
        # Here and not in the parts themselves: only the recipe knows under which name a part's options are given.
        for stage in STAGES:
            with within(f"stage{stage}"):
                self.stage(stage).check()
            check_trainer(f"stage{stage}.trainer", self.stage(stage).trainer, (stage,))
            if self.data and self.data is not tyro.MISSING:
                self.sources_of(stage)
        check_whole("streaming", self.streaming, 0, MOST_RECORDS, hint="; 0 reads no stream")
        for stage in self.stages:
            self._check_stream(stage)
        check_trainer("trainer", self.trainer, self.stages)
        if self.stage2.lora:
            raise OptionError(
                "stage2.lora", "experts evolve from the weights of the FFNs, which must train themselves; leave it out."
            )
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
        check_on_bad_record(self.on_bad_record)
        check_image_aspect(self.image_aspect)
        check_whole("max_length", self.max_length, 1, LONGEST)
        check_whole("max_pixels", self.max_pixels, 1)
        check_whole("video_frames", self.video_frames, 1, MOST_FRAMES)
        check_whole("workers", self.workers, 0, MOST_WORKERS)
        check_whole("seed", self.seed, 0, LARGEST_SEED)

    def but(self, **changes: Any) -> "Recipe":
        """A copy with some fields changed; those of ``moe`` and ``evolution`` by their own names: ``but(router="linear")``.

        A stage takes a part of its options: ``but(stage2={"steps": 10})``.

        Raises:
            OptionError: there is no such field, or its value is wrong.
        """
        for name in changes.keys() & vars(self.stage1).keys() - vars(self).keys():
            raise OptionError(name, f"it belongs to a stage: recipe.but(stage3={{'{name}': ...}}).")
        check_names(changes, [*vars(self), *vars(self.moe), *vars(self.evolution)], "A recipe")
        for name in [f"stage{number}" for number in STAGES if isinstance(changes.get(f"stage{number}"), Mapping)]:
            check_names(changes[name], [*vars(self.stage1)], f"`{name}`")
            changes[name] = dataclasses.replace(getattr(self, name), **changes[name])
        for part in ("moe", "evolution"):
            owned = {f.name for f in dataclasses.fields(getattr(self, part))} - {f.name for f in dataclasses.fields(self)}
            inner = {name: changes.pop(name) for name in list(changes) if name in owned}
            if inner:
                changes[part] = dataclasses.replace(changes.get(part, getattr(self, part)), **inner)
        return dataclasses.replace(self, **changes)

    def stage(self, number: int) -> StageOptions:
        """The options of one stage."""
        return getattr(self, f"stage{number}")

    def data_of(self, stage: int) -> str | tuple[str, ...]:
        """The data that a stage trains on: its own, or the run's."""
        return self.stage(stage).data or self.data

    def sources_of(self, stage: int) -> tuple[DataSource, ...]:
        """The sources of a stage's data.

        Raises:
            OptionError: they, their weights or their folders are wrong.
        """
        own, root = self.stage(stage), self.image_root
        name = f"stage{stage}.image_root"
        if own.image_root is not None:
            root = own.image_root
        elif not own.data:
            name = "image_root"
        return data_sources(self.data_of(stage), root, f"stage{stage}.data" if own.data else "data", name)

    def _check_stream(self, stage: int) -> None:
        """Raises OptionError if a stage would have no end, or would read whole what can only be a stream."""
        if self.streaming and not self.stage(stage).steps:
            raise OptionError(
                f"stage{stage}.steps", "it must be given with `streaming`: nobody knows how long a pass over a stream is."
            )
        data = self.data_of(stage)
        if self.streaming or not data or data is tyro.MISSING:
            return
        if name := next((source.name for source in self.sources_of(stage) if only_streamed(source.name)), None):
            raise OptionError("streaming", f"{name} is read as a stream; give the records to shuffle at a time, such as 1000.")

    def check_expert_init(self, needed: str | None = None) -> None:
        """Raises OptionError if Stage III is to make experts of what nothing gives it.

        Args:
            needed: the option that Stage II's file goes into, where the caller has loaded the table of initialisers.
        """
        needed = option_from_stage2(self.expert_init) if needed is None else needed
        if 3 in self.stages and needed and 2 not in self.stages and needed not in self.init_options:
            raise OptionError(
                "expert_init",
                f"'{self.expert_init}' needs Stage II in the same run, or the file that another run's Stage II wrote: "
                f"`init_options={needed}=FILE`; or choose another `expert_init`.",
            )

    def placement(self) -> str | list[int]:
        """``moe_layers`` as ``evomoe.recipe.placement`` takes it."""
        return parse_placement(self.moe_layers)

    def save(self, path: str | Path) -> None:
        """Writes recipe.json."""
        write_text(path, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Recipe":
        """Reads recipe.json, the one in a run's folder, or a recipe in YAML, which may leave options at their defaults.

        Raises:
            ValueError: it is not a recipe of this version, or neither JSON nor YAML; the message names the file.
        """
        if Path(path).is_dir() and not (Path(path) / "recipe.json").exists():
            raise ValueError(f"{path}: there is no recipe.json in this folder.")
        path = Path(path) / "recipe.json" if Path(path).is_dir() else Path(path)
        try:
            values = _completed(read_yaml(path)) if path.suffix in YAML else read_json(path)
            if not isinstance(values, dict):
                raise TypeError("it must have options by name")
            if "router_gradient" not in values.get("moe", {"router_gradient": ""}):  # before there was a choice
                values["moe"]["router_gradient"] = "chosen"
            for stage in STAGES:  # before stages went on where others had stopped
                values.get(f"stage{stage}", {}).setdefault("seen_records", 0)
                values.get(f"stage{stage}", {}).setdefault("image_root", None)
            for name, default in {
                "template_options": {},
                "allow_special_tokens": [],
                "check_pictures": "header",
                "video_frames": VIDEO_FRAMES,
                "streaming": 0,
            }.items():  # before there was a choice
                values.setdefault(name, default)
            missing = {f.name for f in dataclasses.fields(cls)} - set(values)
            if missing:
                raise TypeError(f"it lacks {', '.join(sorted(missing))}")
            for name, part in _PARTS.items():
                values[name] = part(**_tuples(values[name]))
            return cls(**_tuples(values))
        except (TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a recipe of this version: {error}.") from error
        except OptionError as error:
            raise OptionError(error.option, f"{error.message} It stands in {path}.") from error

    def records_per_step(self, stage: int, processes: int) -> int:
        """How many records an optimiser step takes, of all processes together."""
        return self.stage(stage).batch_size * self.stage(stage).accumulation * processes

    def with_steps_of(self, other: "Recipe", processes: int, processes_of_other: int) -> "Recipe":
        """This recipe, but with the other's batches in each stage whose steps take as many records there, of other processes."""
        changes = {}
        for stage in STAGES:
            own, others = self.stage(stage), other.stage(stage)
            if self.records_per_step(stage, processes) == other.records_per_step(stage, processes_of_other):
                changes[f"stage{stage}"] = dataclasses.replace(
                    own, batch_size=others.batch_size, accumulation=others.accumulation
                )
        return dataclasses.replace(self, **changes)

    def differences(self, other: "Recipe") -> list[str]:
        """Names the fields in which two recipes differ, but for where the run lies and how its records are read."""
        return self._changes(other, lambda name: name not in ("output", "workers", *_OF_BAD_RECORDS))

    def bad_record_changes(self, other: "Recipe") -> list[str]:
        """Names the fields in which two recipes treat bad records differently, which a run that goes on may."""
        return self._changes(other, lambda name: name in _OF_BAD_RECORDS)

    def _changes(self, other: "Recipe", counts: Callable[[str], bool]) -> list[str]:
        mine, theirs = _leaves(self), _leaves(other)
        return [f"{name}: {theirs[name]!r} -> {mine[name]!r}" for name in mine if counts(name) and mine[name] != theirs[name]]


def _completed(given: Any) -> dict[str, Any]:
    """The values of a recipe of which those that are given take the place of the defaults; an empty one is not given."""
    values = dataclasses.asdict(Recipe("", "", ""))

    def fill(values: dict[str, Any], given: Any, where: str) -> None:
        if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
            raise TypeError(f"{where or 'it'} must have options by name")
        check_names(given, [*values], where or "A recipe")
        for name, value in given.items():
            if name in _PARTS:
                fill(values[name], {} if value is None else value, name)
            elif value is not None:
                values[name] = value

    fill(values, {} if given is None else given, "")
    return values


def _leaves(recipe: Recipe) -> dict[str, Any]:
    """The options of a recipe by their whole names, ``stage2.steps``; those of the mixture have no part in front."""
    found: dict[str, Any] = {}
    for name, value in vars(recipe).items():
        if dataclasses.is_dataclass(value):
            found |= {option if name == "moe" else f"{name}.{option}": own for option, own in vars(value).items()}
        else:
            found[name] = value
    return found


def _tuples(values: Any) -> Any:
    """Lists, as JSON gives them, to tuples; the inside of a dict is the user's own and stays."""
    if isinstance(values, dict):
        return {name: value if isinstance(value, dict) else _tuples(value) for name, value in values.items()}
    return tuple(_tuples(value) for value in values) if isinstance(values, list) else values
