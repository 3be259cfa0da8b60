"""Ratios of two or more pieces of work, timed side by side in one run."""

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil
import torch

from evomoe.support.device import best_device, device_name


@dataclass(frozen=True)
class Ratio:
    """How much longer one piece of work takes than another, and the limit the project sets itself.

    Attributes:
        others: the share of the cores that other programs took meanwhile.
    """

    name: str
    value: float
    spread: tuple[float, float]
    limit: float | None = None
    others: float = 0.0

    @classmethod
    def of(cls, name: str, ratios: Sequence[float], limit: float | None = None, others: float = 0.0) -> "Ratio":
        """The median of several measurements, with their quartiles."""
        quartiles = statistics.quantiles(ratios, n=4)
        return cls(name, statistics.median(ratios), (quartiles[0], quartiles[2]), limit, others)

    def __str__(self) -> str:
        low, high = self.spread
        return f"{self.name:<74} {self.value:7.3f}  (rounds {low:.3f} to {high:.3f}){self._verdict()}"

    def _verdict(self) -> str:
        if self.limit is None:
            return ""
        judged = "ok" if self.value <= self.limit else "EXCEEDED"
        if self.others > BUSY:
            judged = f"too busy to judge, others took {self.others:.0%} of the cores"
        return f"   limit {self.limit:.2f}: {judged}"


BUSY = 0.1
"""The share of the cores that others may take before a ratio says too little."""


class Others:
    """Watches the share of the cores that other programs take."""

    def __init__(self) -> None:
        self._begin = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Seconds on the clock, of all cores at work, and of this process."""
        times = psutil.cpu_times()._asdict()
        idle = ("idle", "iowait", "guest", "guest_nice")  # the last two are counted as user and nice too
        return time.perf_counter(), sum(value for name, value in times.items() if name not in idle), time.process_time()

    def share(self) -> float:
        clock, busy, own = (now - then for now, then in zip(self._now(), self._begin, strict=True))
        return max(0.0, busy - own) / (clock * (psutil.cpu_count() or 1))


def compare(
    name: str, work: Callable[[], object], against: Callable[[], object], rounds: int, limit: float | None = None
) -> Ratio:
    """Times ``work`` and ``against`` alternately and gives the median of the ratios of neighbouring runs.

    Alternating spreads whatever else the machine does over both.
    """
    for _ in range(2):
        work()
        against()
    ratios, others = [], Others()
    for i in range(rounds):
        pair = (work, against) if i % 2 == 0 else (against, work)
        taken = {}
        for function in pair:
            begin = seconds()
            function()
            taken[function] = seconds() - begin
        ratios.append(taken[work] / taken[against])
    return Ratio.of(name, ratios, limit, others.share())


def seconds() -> float:
    """The clock, once the device has done its work."""
    if best_device().type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def machine() -> str:
    """The machine's name for the head of a table."""
    if best_device().type != "cpu":
        return f"{device_name()}, torch {torch.__version__}"
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            model = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def saved_bytes(function: Callable[[], torch.Tensor], already_there: Sequence[torch.Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass of ``function``, less the tensors that exist anyway."""
    known = {tensor.untyped_storage().data_ptr() for tensor in already_there}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    outputs = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs.append(function())
    return sum(kept.values())
