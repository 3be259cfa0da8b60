"""What the tasks of a study share, made once in a process: the training mix and the benchmarks' questions, as tensors."""

from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from evomoe.data.conversations import ConversationDataset
from evomoe.evaluation.average import paper_benchmarks
from evomoe.evaluation.evaluation_options import EvaluationOptions
from evomoe.evaluation.prepared import Prepared, prepare
from evomoe.model.loading import load_processor
from evomoe.recipe.recipe import Recipe
from evomoe.training.checked_run import load_data

BATCH_SIZE = 128


def training_data(recipe: Recipe, base: Path) -> ConversationDataset:
    """The checked data of a recipe's only stage. All models that come from one base have its processor."""
    names = ("image_root", "max_length", "max_pixels", "image_aspect", "on_bad_record", "trust_remote_code")
    options = tuple((name, getattr(recipe, name)) for name in names)
    return _training_data(base, recipe.data_of(recipe.stages[0]), options)


@lru_cache(maxsize=1)  # the base model's lessons take turns, and pictures as numbers are large
def _training_data(base: Path, data: str | tuple[str, ...], options: tuple[tuple[str, Any], ...]) -> ConversationDataset:
    recipe = Recipe(str(base), data, "", stages=(1,), **dict(options))
    return load_data(recipe, load_processor(base, recipe.trust_remote_code), keep=True)[1]


@cache
def benchmarks(base: Path, folder: Path, limit: int) -> tuple[Prepared, ...]:
    """The seven small benchmarks below ``folder``, ``limit`` questions of each or all if it is 0."""
    options = EvaluationOptions(batch_size=BATCH_SIZE, data_root=str(folder), limit=limit)
    processor = load_processor(base)
    return tuple(prepare(benchmark, processor, options, keep=True) for benchmark in paper_benchmarks(mini=True))
