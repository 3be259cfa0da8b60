"""A run under torchrun with two processes on CPUs, and whether it is the run of one process with the same global batch."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import make_recipe

from evomoe.recipe.recipe import Recipe

STEPS = 4
DEEPSPEED = os.environ.get("EVOMOE_DEEPSPEED", "")
"""Its interpreter, in an environment of its own; `make test-distributed` makes it."""
needs_deepspeed = pytest.mark.skipif(not DEEPSPEED, reason="EVOMOE_DEEPSPEED names no interpreter with DeepSpeed")


def recipe_of(workspace: Path, output: str, batch_size: int, trainer: dict | None = None, **changes) -> Recipe:
    """A run of all three stages.

    Plain descent: Adam would hide gradients of a wrong size, and make steps of what rounding leaves of those that are 0.
    """
    recipe = make_recipe(workspace, output, STEPS, stages=(1, 2, 3), **changes)
    stages = {f"stage{n}": replace(recipe.stage(n), batch_size=batch_size, learning_rate=0.1) for n in (1, 2, 3)}
    moe = replace(recipe.moe, router="linear", router_options={})
    return recipe.but(moe=moe, trainer={"optim": "sgd", "optim_args": "momentum=0.5"} | (trainer or {}), **stages)


def zero(workspace: Path, stage: int) -> dict:
    """The Trainer's arguments for a stage of ZeRO. Under ZeRO-3 each weight is shared out, however small."""
    automatic = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    sharing = {"stage": stage} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {})
    settings = {"zero_optimization": sharing} | dict.fromkeys(automatic, "auto")
    path = workspace / f"zero{stage}.json"
    path.write_text(json.dumps(settings))
    return {"deepspeed": str(path), "use_cpu": False}


def torchrun(
    *options: object, python: str = sys.executable, killed: Mapping[str, int] | None = None, like_gpus: bool = False
) -> None:
    """Runs ``evomoe train`` with these options in two processes, on CPUs.

    Args:
        python: the interpreter.
        killed: the steps at whose ends both processes die, by stage.
        like_gpus: accelerate is to treat the CPUs as it treats GPUs.
    """
    program = Path(__file__).with_name("started_by_torchrun.py")
    happening = json.dumps({"killed": killed or {}, "like_gpus": like_gpus})
    launcher = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program), happening]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    environment |= {"ACCELERATE_TORCH_DEVICE": "cpu"} if like_gpus else {"ACCELERATE_USE_CPU": "1"}
    done = subprocess.run([*launcher, "train", *map(str, options)], env=environment, capture_output=True, text=True, timeout=600)
    if killed:
        assert done.returncode and "RuntimeError: killed" in done.stderr, done.stderr[-3000:]
    else:
        assert done.returncode == 0, done.stderr[-3000:]


def of_two(recipe: Recipe, *options: str, **how) -> None:
    """Trains a recipe with two processes."""
    path = Path(recipe.output).with_suffix(".json")
    recipe.save(path)
    torchrun("--recipe", path, *options, **how)


def assert_same_weights(one: Path, other: Path) -> None:
    stages = sorted(path.parent.name for path in one.glob("*/model"))
    assert stages
    for stage in stages:
        alone, shared = (load_file(output / stage / "model" / "model.safetensors") for output in (one, other))
        assert alone.keys() == shared.keys()
        for name, tensor in alone.items():
            torch.testing.assert_close(
                shared[name], tensor, atol=1e-5, rtol=1e-4, msg=lambda text, n=name, s=stage: f"{s} {n}: {text}"
            )


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, evolved experts and what was logged are the same, and what one process writes is there once."""
    assert_same_weights(one, other)
    for file in one.glob("*/evolved_experts.safetensors"):
        alone, shared = load_file(file), load_file(other / file.relative_to(one))
        assert alone.keys() == shared.keys()
        for name, tensor in alone.items():
            torch.testing.assert_close(shared[name], tensor, atol=1e-5, rtol=1e-4)
    for alone, shared in zip(_logged(one), _logged(other), strict=True):
        assert alone.keys() == shared.keys() and alone.pop("stage") == shared.pop("stage")
        for name, value in alone.items():
            assert shared[name] == pytest.approx(value, abs=1e-4, rel=1e-3), f"{name} at step {alone['step']}"
    for file in ("report.md", "stage3_routing/model/README.md"):
        assert (other / file).is_file()


def _logged(output: Path) -> list[dict]:
    entries = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    # Times; and a mean over the steps since the run went on.
    timed = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos", "train_loss")
    return [{name: value for name, value in entry.items() if name not in timed} for entry in entries]
