"""Scores: one file per benchmark, one row per name."""

from evomoe.evaluation import easy_vqa
from evomoe.evaluation.base import Benchmark, Item, Score, evaluate

BENCHMARKS: dict[str, Benchmark] = {"easy-vqa": easy_vqa.BENCHMARK}

__all__ = ["BENCHMARKS", "Benchmark", "Item", "Score", "evaluate"]
