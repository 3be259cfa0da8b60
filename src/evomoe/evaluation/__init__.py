"""Scores: benchmarks, the answers of a model to their questions, and the rules that count them."""

from evomoe.evaluation.benchmark import PROTOCOLS, Benchmark, Question, Result
from evomoe.evaluation.benchmarks import BENCHMARKS

__all__ = ["BENCHMARKS", "PROTOCOLS", "Benchmark", "Question", "Result"]
