"""Runs three stages in processes that are sent a signal at random moments, and goes on until they are done; prints what became of them.

Arguments: a folder, the signal's number, how many moments, a seed. The processes are forks of this one, so that each begins at once.
"""

import json
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from small_runs import make_recipe
from tiny import write_workspace
from tqdm import tqdm

from evomoe.recipe.run_folder import RunFolder
from evomoe.support.content import file_hash
from evomoe.training.run import run


def begin(recipe) -> int:
    """Starts or goes on with the run in a process of its own."""
    if child := os.fork():
        return child
    status = 1
    try:
        run(recipe, resume="if begun", report=False)
        status = 0
    except KeyboardInterrupt:  # told to stop, it has saved a checkpoint
        status = 130
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def ended(child: int, seconds: float) -> int | None:
    """How a process ended within so many seconds; None if it goes on."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def main(folder: Path, number: int, moments: int, seed: int) -> None:
    tqdm.set_lock(threading.RLock())  # before the first bar: its own is shared by all forks, and a killed one would keep it
    recipe = make_recipe(write_workspace(folder), "straight", stages=(1, 2, 3), steps=6)
    begun = time.monotonic()
    assert ended(begin(recipe), 600) == 0
    whole, draw = time.monotonic() - begun, random.Random(seed)
    told = {"sent": 0, "runs": 0, "differ": [], "failed": []}
    disturbed = recipe.but(output=str(folder / "disturbed"))
    while told["sent"] < moments:
        child = begin(disturbed)
        status = ended(child, draw.uniform(0, 0.8 * whole))
        if status is None:
            os.kill(child, number)
            told["sent"] += 1
            status = ended(child, 600)
        if status not in (0, -number, 130):
            told["failed"].append(status)
            break
        if status == 0:
            told["runs"] += 1
            told["differ"] += compare(recipe, disturbed)
            shutil.rmtree(disturbed.output)
    if Path(disturbed.output).exists():
        status = ended(begin(disturbed), 600)
        told["failed"] += [status] if status else []
        told["differ"] += compare(recipe, disturbed) if status == 0 else []
        told["runs"] += 1
    print(json.dumps(told))


def compare(straight, disturbed) -> list[str]:
    """The stages whose weights differ, by their bytes, so that this process stays without threads; and what is left about."""
    one, other = RunFolder(straight.output), RunFolder(disturbed.output)
    differ = [
        f"stage {stage}"
        for stage in (1, 2, 3)
        if file_hash(one.stage(stage).model / "model.safetensors") != file_hash(other.stage(stage).model / "model.safetensors")
    ]
    return differ + [str(path) for path in other.path.rglob("*") if path.name.endswith("partial") or path.name == "checkpoints"]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
