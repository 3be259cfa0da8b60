"""A whole run of two processes under torchrun is the run of one process with the same global batch, also when it was resumed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import make_recipe, torchrun, weights

from evomoe.recipe.recipe import Recipe
from evomoe.support.errors import OptionError
from evomoe.training.dry_run import describe
from evomoe.training.run import run

STEPS = 4


def recipe_of(workspace: Path, output: str, batch_size: int, **changes) -> Recipe:
    recipe = make_recipe(workspace, output, STEPS, stages=(1, 2, 3), **changes)
    stages = {f"stage{n}": replace(recipe.stage(n), batch_size=batch_size, learning_rate=0.1) for n in (1, 2, 3)}
    # Plain descent: Adam would hide gradients of a wrong size, and make steps of what rounding leaves of those that are 0.
    return recipe.but(moe=replace(recipe.moe, router="linear", router_options={}), trainer={"optim": "sgd"}, **stages)


def of_two(recipe: Recipe, *options: str) -> None:
    path = Path(recipe.output).with_suffix(".json")
    recipe.save(path)
    torchrun("--recipe", path, *options)


def metrics(output: Path) -> list[dict]:
    entries = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    timed = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos")
    return [{name: value for name, value in entry.items() if name not in timed} for entry in entries]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["warmup", "evolution", "routing"])
def test_a_run_of_one_process_goes_on_with_two(workspace, stage, kill_at):
    straight, one, two = (recipe_of(workspace, *case) for case in (("straight", 4), ("killed", 4), ("killed", 2)))
    run(straight)
    kill_at[stage] = 3
    with pytest.raises(RuntimeError, match="killed"):
        run(one)
    of_two(two, "--resume")
    for number, name in enumerate(("warmup", "evolution", "routing"), start=1):
        alone, shared = (weights(workspace / output / f"stage{number}_{name}" / "model") for output in ("straight", "killed"))
        for key, tensor in alone.items():
            torch.testing.assert_close(shared[key], tensor, atol=1e-5, rtol=1e-4)
    assert json.loads((workspace / "killed" / "identity.json").read_text())["processes"] == 2


def test_other_processes_whose_steps_take_other_records_are_refused(workspace, kill_at, monkeypatch):
    one, two = recipe_of(workspace, "killed", 4), recipe_of(workspace, "killed", 2)
    kill_at["warmup"] = 3
    with pytest.raises(RuntimeError, match="killed"):
        run(one)
    with pytest.raises(OptionError, match="stage1.batch_size: 4 -> 2"):
        describe(two, resume=True)
    for module in ("training.identity", "training.record_order", "recipe.run_folder"):
        monkeypatch.setattr(f"evomoe.{module}.process_count", lambda: 2)
    with pytest.raises(OptionError, match="it had 1 process and has 2 now.* Other processes may go on if"):
        describe(one, resume=True)
    assert "goes on after step 2" in describe(two, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
def test_two_processes_train_what_one_does(workspace, packing):
    one, two = recipe_of(workspace, "one", 4, packing=packing), recipe_of(workspace, "two", 2, packing=packing)
    run(one)
    of_two(two)
    for stage in ("stage1_warmup", "stage2_evolution", "stage3_routing"):
        alone, shared = (weights(workspace / output / stage / "model") for output in ("one", "two"))
        for name, tensor in alone.items():
            torch.testing.assert_close(
                shared[name], tensor, atol=1e-5, rtol=1e-4, msg=lambda text, n=name, s=stage: f"{s} {n}: {text}"
            )
    experts = [load_file(workspace / output / "stage2_evolution" / "evolved_experts.safetensors") for output in ("one", "two")]
    for name, tensor in experts[0].items():
        torch.testing.assert_close(experts[1][name], tensor, atol=1e-5, rtol=1e-4)
    for alone, shared in zip(metrics(workspace / "one"), metrics(workspace / "two"), strict=True):
        assert alone.pop("stage") == shared.pop("stage") and alone == pytest.approx(shared, abs=1e-4, rel=1e-3)
    assert (workspace / "two" / "report.md").is_file() and (
        workspace / "two" / "stage3_routing" / "model" / "README.md"
    ).is_file()
