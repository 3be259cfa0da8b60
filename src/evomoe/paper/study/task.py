"""One piece of a study, in a process of its own: train a stage, or score a model.

A task is named by a hash of its options, its data's name and the weights that it starts from, so that rows share what they have in common,
and what is finished is kept.
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from evomoe.analysis.intervention import Intervention
from evomoe.recipe.options import STAGES, VIDEO_FRAMES
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.run_folder import RunFolder, StageFolder
from evomoe.support.files import write_text

if TYPE_CHECKING:
    from transformers.modeling_utils import PreTrainedModel

_ONLY_FOR = {"evolution": (2,), "moe": (3,), "expert_init": (3,), "init_options": (3,)}
"""Fields of a recipe that one stage or another reads; the others every stage reads."""


PROVENANCE = "provenance.json"
"""In the folder of a training: when, where and with what code it was."""


@dataclass(frozen=True)
class Training:
    """One stage of a recipe, from the model of another training or from a folder.

    Attributes:
        recipe: with this one stage.
        source: what it starts from.
    """

    recipe: Recipe
    source: "Training | Path"

    @property
    def stage(self) -> int:
        return self.recipe.stages[0]

    @property
    def stages(self) -> tuple[int, ...]:
        """Those of the trainings so far."""
        return (*(self.source.stages if isinstance(self.source, Training) else ()), self.stage)

    @property
    def base(self) -> Path:
        """The folder from which the first of the trainings started."""
        return self.source.base if isinstance(self.source, Training) else self.source

    @property
    def key(self) -> str:
        """A hash of the options that this stage reads, of its data and of what it starts from."""
        values = recipe_values(self.recipe)
        kept = {
            name: value
            for name, value in values.items()
            if name not in ("model", "output", "workers", *(f"stage{n}" for n in STAGES if n != self.stage))
            and (name not in _ONLY_FOR or self.stage in _ONLY_FOR[name])
        }
        kept["data"], kept["image_root"] = last_parts(self.recipe.data), last_parts(self.recipe.image_root)
        own = kept[f"stage{self.stage}"]
        kept[f"stage{self.stage}"] = own | {"data": last_parts(own["data"])}
        source = self.source.key if isinstance(self.source, Training) else identity(self.source)
        return _hash([kept, source])

    @property
    def name(self) -> str:
        return f"{STAGES[self.stage]}-{self.key}"

    def folder(self, study: Path) -> Path:
        return study / self.name

    def model(self, study: Path) -> Path:
        return self._stage(study, self.stage).model

    def experts(self, study: Path) -> Path:
        """The file with the experts that evolve beside the model in Stage II."""
        return self._stage(study, 2).experts

    def _stage(self, study: Path, number: int) -> StageFolder:
        return RunFolder(self.folder(study)).stage(number)

    def done(self, study: Path) -> bool:
        return self.model(study).is_dir()

    def run(self, study: Path) -> None:
        """Trains the stage, or goes on with it."""
        from evomoe.conversion.expert_init import option_from_stage2
        from evomoe.paper.study.provenance import provenance
        from evomoe.paper.study.shared_inputs import training_data
        from evomoe.training.record_order import seen_records
        from evomoe.training.run import run

        recipe, source = self.recipe, self.source
        if isinstance(source, Training):
            if self.stage == 3 and (needed := option_from_stage2(recipe.expert_init)):
                recipe = recipe.but(init_options=recipe.init_options | {needed: str(source.experts(study))})
            source = source.model(study)
        folder, here = self.folder(study), provenance()
        recipe = recipe.but(model=str(source), output=str(folder))
        data = {self.stage: training_data(recipe, self.base)}
        seen = seen_records(recipe.but(stages=self.stages), self.stage, len(data[self.stage]))
        recipe = recipe.but(**{f"stage{self.stage}": dataclasses.replace(recipe.stage(self.stage), seen_records=seen)})
        # Another row may have begun it, with other options for other stages, or when the same files lay elsewhere: the folder's
        # name says that this stage is the same.
        run(recipe, resume="known", report=False, label=self.name, datasets=data)
        write_text(folder / PROVENANCE, json.dumps(here) + "\n")

    def provenance(self, study: Path) -> list[dict[str, str]]:
        """Where and with what code each stage up to this one was trained, as far as that was written down."""
        before = self.source.provenance(study) if isinstance(self.source, Training) else []
        written = self.folder(study) / PROVENANCE
        return before + ([json.loads(written.read_text())] if written.is_file() else [])


@dataclass(frozen=True)
class Scoring:
    """The scores of a model on the seven small benchmarks.

    Attributes:
        training: what made the model; a folder for the base.
        split: "validation" or "test".
        limit: questions per benchmark, drawn at random but always the same; 0 for all.
        intervention: what is changed in the model while it answers.
    """

    training: Training | Path
    world: Path
    split: str
    limit: int = 0
    intervention: Intervention = Intervention()

    @property
    def base(self) -> Path:
        """The folder of the model from which all began."""
        return self.training.base if isinstance(self.training, Training) else self.training

    @property
    def key(self) -> str:
        source = self.training.key if isinstance(self.training, Training) else identity(self.training)
        asked = self.intervention
        values = [source, self.world.name, self.split, self.limit, asked.expert, asked.shuffle]
        # Scorings from before these two were there keep their names.
        later = [asked.experts_per_token, asked.shuffle_importance]
        if later != [None, None]:
            values += later
        return _hash(values)

    @property
    def name(self) -> str:
        return f"scores-{self.key}"

    def model(self, study: Path) -> Path:
        """The folder of the model that is asked; of one that is trained, below ``study``."""
        return self.training.model(study) if isinstance(self.training, Training) else self.training

    def file(self, study: Path) -> Path:
        return study / f"{self.name}.json"

    def done(self, study: Path) -> bool:
        return self.file(study).is_file()

    def run(self, study: Path) -> None:
        """Answers and scores; writes scores, answers, and when and where that was, and the training before."""
        from evomoe.paper.study.measure import score_model
        from evomoe.paper.study.provenance import provenance

        trained = self.training.provenance(study) if isinstance(self.training, Training) else []
        scores = score_model(self._load(study), self.base, self.world, self.split, self.limit, self.intervention)
        write_text(self.file(study), json.dumps(scores | {"run": provenance(), "trained": trained}) + "\n")

    def _load(self, study: Path) -> "PreTrainedModel":
        """The model that is asked. Of Stage II's experts each is asked alone, before there is a sparse model of them."""
        from evomoe.model.loading import load_model
        from evomoe.paper.study.measure import with_evolved_experts

        model, training = load_model(self.model(study)), self.training
        if isinstance(training, Training) and training.stage == 2 and self.intervention.expert is not None:
            return with_evolved_experts(model, training.experts(study), training.recipe)
        return model


Task = Training | Scoring


def run_once(task: Task, study: Path) -> None:
    """Runs a task unless it is done; one that another process is at is waited for, and then is done."""
    locks = study / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / task.name)  # the system lets go of it when the process ends, however that happens
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tqdm.write(f"{task.name}: another command is at it; waiting until it has finished, or stops.", sys.stderr)
        lock.acquire()
    try:
        if not task.done(study):
            task.run(study)
    finally:
        lock.release()


def source_of(task: Task) -> "Training | None":
    """What must be done before."""
    source = task.source if isinstance(task, Training) else task.training
    return source if isinstance(source, Training) else None


def identity(model: Path) -> str:
    """A folder's name and a hash of the weights in it, wherever it is; the name alone of one that is not there yet."""
    return "-".join([model.name, *(_digest(file, file.stat().st_mtime_ns) for file in sorted(model.glob("*.safetensors")))])


@cache
def _digest(file: Path, changed: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """A recipe's options by name, without those that were not there when first results were kept, unless they say something."""
    values = dataclasses.asdict(recipe)
    if recipe.video_frames == VIDEO_FRAMES:
        del values["video_frames"]
    if not recipe.streaming:
        del values["streaming"]
    if not recipe.allow_special_tokens:
        del values["allow_special_tokens"]
    for stage in STAGES:
        if recipe.stage(stage).image_root is None:
            del values[f"stage{stage}"]["image_root"]
        if not recipe.stage(stage).lora:
            del values[f"stage{stage}"]["lora"], values[f"stage{stage}"]["lora_alpha"]
    return values


def last_parts(path: str | Sequence[str | None] | None) -> str:
    """A file by its name and that of the world it is in, wherever that is; several as a list of these."""
    if path is not None and not isinstance(path, str):
        return " ".join(map(last_parts, path))
    return "/".join(Path(path or "").parts[-3:])


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:12]
