"""One file per benchmark: its data, its prompts, its rule, the format of its server."""

from dataclasses import replace

from evomoe.evaluation.benchmark import Benchmark
from evomoe.evaluation.benchmarks import easy_vqa, gqa, held_out, mmbench, mme, pope, sqa, textvqa, vqav2

_LARGE = (
    vqav2.BENCHMARK, gqa.BENCHMARK, sqa.BENCHMARK, textvqa.BENCHMARK, textvqa.WITH_OCR, pope.BENCHMARK, mme.BENCHMARK,
    mmbench.BENCHMARK,
)  # fmt: skip
"""Those of which ``evomoe.mini`` has a small set in the same format."""


def _mini(benchmark: Benchmark) -> Benchmark:
    """The same loader, prompts and rule on the test set of that format in ``evomoe.mini``."""
    return replace(
        benchmark,
        name=f"mini-{benchmark.name}",
        summary=f"A small synthetic set in the format of {benchmark.name}, made on the spot.",
        rule=benchmark.name,
        foreign_files=replace(benchmark.foreign_files, versions=""),
        folders=benchmark.folders or (benchmark.name,),
        counts=(),
        mini=True,
    )


BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark for benchmark in (*_LARGE, easy_vqa.BENCHMARK, held_out.BENCHMARK, *map(_mini, _LARGE))
}
