"""One file per benchmark: its data, its prompts, its rule, the format of its server."""

from evomoe.evaluation.base import Benchmark
from evomoe.evaluation.benchmarks import easy_vqa, gqa, mmbench, mme, pope, sqa, textvqa, vqav2

_ROWS = (
    vqav2.BENCHMARK, gqa.BENCHMARK, sqa.BENCHMARK, textvqa.BENCHMARK, textvqa.WITH_OCR, pope.BENCHMARK, mme.BENCHMARK,
    mmbench.BENCHMARK, easy_vqa.BENCHMARK,
)  # fmt: skip
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ROWS}
