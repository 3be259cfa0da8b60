"""DeepSpeed's ZeRO-2 and ZeRO-3 with two processes on CPUs (gloo): all three stages are the run of one process, also when resumed.

It needs an environment of its own: `make test-distributed` makes it and names its interpreter in EVOMOE_DEEPSPEED.
"""

import json
import os

import pytest
from two_processes import assert_same_run, of_two, recipe_of

from evomoe.training.run import run

PYTHON = os.environ.get("EVOMOE_DEEPSPEED", "")
needs_deepspeed = pytest.mark.skipif(not PYTHON, reason="EVOMOE_DEEPSPEED names no interpreter with DeepSpeed")


def zero(workspace, stage: int) -> dict:
    """The Trainer's arguments for a stage of ZeRO. Under ZeRO-3 each weight is shared out, however small."""
    automatic = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    settings = {"zero_optimization": {"stage": stage} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {}), **dict.fromkeys(automatic, "auto")}
    path = workspace / f"zero{stage}.json"
    path.write_text(json.dumps(settings))
    return {"deepspeed": str(path), "use_cpu": False}


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_two_processes_train_what_one_does(workspace, stage):
    run(recipe_of(workspace, "one", 4))
    of_two(recipe_of(workspace, "two", 2, zero(workspace, stage)), python=PYTHON, like_gpus=True)
    assert_same_run(workspace / "one", workspace / "two")
