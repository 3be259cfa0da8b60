"""The processes of a run that torchrun or accelerate started."""

import os

_OWN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_OTHERS = (
    ("mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("mpirun", "PMI_RANK", "PMI_SIZE"),
    ("mpirun", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),  # SLURM_NTASKS stands in the one process of a batch script too
    ("flux run", "FLUX_TASK_RANK", "FLUX_JOB_SIZE"),
)
"""Launchers, and what they tell each process of several: its number, and how many there are."""


def is_main_process() -> bool:
    """Whether this process writes the files that all processes share."""
    return process_number() == 0


def process_number() -> int:
    """Which of the run's processes this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def process_count() -> int:
    """How many processes share the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_processes() -> None:
    """Several processes know of each other, or they would all do the same work and write the same files.

    Raises:
        ValueError: this is one of several that another launcher than torchrun started, or only a part of what torchrun says is set.
    """
    for name in _OWN:
        if not os.environ.get(name, "0").isdecimal():
            raise ValueError(f"The environment variable {name} is {os.environ[name]!r}; it must be a whole number of at least 0.")
    rank, size = _number("RANK"), process_count()
    missing = [name for name in _OWN if name not in os.environ]
    if missing and (size > 1 or rank > 0 or "LOCAL_RANK" in os.environ):
        there = ", ".join(f"{name}={os.environ[name]}" for name in _OWN if name in os.environ)
        raise ValueError(
            f"The environment says {there}, and not {' and '.join(missing)}: this process cannot find the others. Start all with "
            "torchrun, or unset these variables."
        )
    if rank >= max(size, 1) or size < 1:
        raise ValueError(f"The environment says RANK={rank} and WORLD_SIZE={size}; ranks go from 0 to one less than the size.")
    if size > 1 or "LOCAL_RANK" in os.environ:  # torchrun has started it
        return
    for launcher, number, count in _OTHERS:
        if _number(number) > 0 or _number(count) > 1:
            raise ValueError(
                f"{launcher} started this as one of several processes ({number}={os.environ.get(number, 'unset')}), and each would do "
                "all of the work in the same folder. Start one process, or start them with torchrun: torchrun --nproc-per-node 2 -m "
                f"evomoe.cli .... If each has a folder and work of its own, unset {number} and {count}."
            )


def _number(name: str) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else 0
