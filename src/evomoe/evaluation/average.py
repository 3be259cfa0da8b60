"""The average of the paper's tables: seven benchmarks, MME's perception divided by 20.

MoE-LLaVA's average is another one: eight benchmarks, without MME.
"""

from collections.abc import Mapping

from evomoe.evaluation.benchmark import Benchmark
from evomoe.evaluation.benchmarks import BENCHMARKS


def paper_benchmarks(mini: bool = False) -> tuple[Benchmark, ...]:
    """Those of the paper's tables, in the order of their columns, or the small ones that stand for them."""
    return tuple(benchmark for benchmark in BENCHMARKS.values() if benchmark.column and benchmark.mini is mini)


def averages(scores: Mapping[str, float]) -> dict[str, float]:
    """The averages that these scores allow, each beside its formula.

    Args:
        scores: by benchmark. The paper's seven give one average, the seven small ones another; the two are never mixed, and
            what is not among the seven, as TextVQA without OCR words, is in neither.

    Returns:
        By formula; nothing for a set that is not whole.
    """
    found = {}
    for mini in (False, True):
        benchmarks = paper_benchmarks(mini)
        if all(benchmark.name in scores for benchmark in benchmarks):
            formula = f"({' + '.join(map(_term, benchmarks))}) / {len(benchmarks)}"
            found[formula] = mean_score({benchmark.name: scores[benchmark.name] for benchmark in benchmarks})
    return found


def _term(benchmark: Benchmark) -> str:
    return benchmark.name if benchmark.divisor == 1 else f"{benchmark.name} / {benchmark.divisor}"


def share_in_average(name: str, score: float) -> float:
    """What a benchmark's score is in an average: of MME's, a 20th."""
    return score / BENCHMARKS[name].divisor


def mean_score(scores: Mapping[str, float]) -> float:
    """The mean of any benchmarks' scores, as an average takes them."""
    return sum(share_in_average(name, score) for name, score in scores.items()) / len(scores)
