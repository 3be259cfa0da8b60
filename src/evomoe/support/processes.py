"""The processes of a run that torchrun or accelerate started."""

import os


def is_main_process() -> bool:
    """Whether this process writes the files that all processes share."""
    return process_number() == 0


def process_number() -> int:
    """Which of the run's processes this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def process_count() -> int:
    """How many processes share the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))
