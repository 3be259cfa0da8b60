"""Ratios of two or more pieces of work, timed side by side in one run."""

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from evomoe.support.device import best_device, device_name


@dataclass(frozen=True)
class Ratio:
    """How much longer one piece of work takes than another, and the limit the project sets itself."""

    name: str
    value: float
    spread: tuple[float, float]
    limit: float | None = None

    @classmethod
    def of(cls, name: str, ratios: Sequence[float], limit: float | None = None) -> "Ratio":
        """The median of several measurements, with their quartiles."""
        quartiles = statistics.quantiles(ratios, n=4)
        return cls(name, statistics.median(ratios), (quartiles[0], quartiles[2]), limit)

    def __str__(self) -> str:
        low, high = self.spread
        verdict = "" if self.limit is None else f"   limit {self.limit:.2f}: {'ok' if self.value <= self.limit else 'EXCEEDED'}"
        return f"{self.name:<74} {self.value:7.3f}  (rounds {low:.3f} to {high:.3f}){verdict}"


def compare(
    name: str, work: Callable[[], object], against: Callable[[], object], rounds: int, limit: float | None = None
) -> Ratio:
    """Times ``work`` and ``against`` alternately and gives the median of the ratios of neighbouring runs.

    Alternating spreads whatever else the machine does over both.
    """
    for _ in range(2):
        work()
        against()
    ratios = []
    for i in range(rounds):
        pair = (work, against) if i % 2 == 0 else (against, work)
        taken = {}
        for function in pair:
            begin = seconds()
            function()
            taken[function] = seconds() - begin
        ratios.append(taken[work] / taken[against])
    return Ratio.of(name, ratios, limit)


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
