"""One file per benchmark: its data, its prompts, its rule, the format of its server."""

from evomoe.evaluation.base import Benchmark
from evomoe.evaluation.benchmarks import easy_vqa, mmbench, mme, pope, sqa

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (sqa.BENCHMARK, pope.BENCHMARK, mme.BENCHMARK, mmbench.BENCHMARK, easy_vqa.BENCHMARK)
}
