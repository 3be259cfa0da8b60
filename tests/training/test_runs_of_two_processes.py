"""A whole run of two processes under torchrun is the run of one process with the same global batch, also when it was resumed."""

import json

import pytest
from tiny import make, make_records, make_tokenizer, write_workspace
from two_processes import assert_same_run, assert_same_weights, of_two, recipe_of

from evomoe.conversion.attaching import attach
from evomoe.recipe.options import MoEOptions
from evomoe.recipe.recipe import Recipe
from evomoe.support.errors import OptionError
from evomoe.training.dry_run import describe
from evomoe.training.run import run


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["warmup", "evolution", "routing"])
def test_a_run_of_one_process_goes_on_with_two(workspace, stage, kill_at):
    straight, one, two = (recipe_of(workspace, *case) for case in (("straight", 4), ("killed", 4), ("killed", 2)))
    run(straight)
    kill_at[stage] = 3
    with pytest.raises(RuntimeError, match="killed"):
        run(one)
    of_two(two, "--resume")
    assert_same_weights(workspace / "straight", workspace / "killed")
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
@pytest.mark.parametrize("killed", ["", "warmup", "evolution", "routing"])
def test_two_processes_that_share_the_weights_out_train_what_one_does(workspace, killed):
    """FSDP2, on CPUs."""
    run(recipe_of(workspace, "one", 4))
    two = recipe_of(workspace, "two", 2, {"fsdp": True, "use_cpu": False})
    if killed:
        of_two(two, killed={killed: 3}, like_gpus=True)
        assert [*(workspace / "two").glob("*/checkpoints/checkpoint-2/optimizer*")]
    of_two(two, *["--resume"][: bool(killed)], like_gpus=True)
    assert_same_run(workspace / "one", workspace / "two")


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
def test_two_processes_train_what_one_does(workspace, packing):
    one, two = recipe_of(workspace, "one", 4, packing=packing), recipe_of(workspace, "two", 2, packing=packing)
    run(one)
    of_two(two)
    assert_same_run(workspace / "one", workspace / "two")


@pytest.mark.slow
def test_a_model_that_was_sparse_before_trains_alike_in_one_process_or_two_shared_out_or_not(tmp_path):
    """By FSDP2 or DDP. Its experts are stacked, and losses reach weights of its routers by another way than the layer's output.

    Its routers learn from all experts: of so many, each process would draw others by default.
    """
    records = [{key: record[key] for key in record if key != "image"} for record in make_records(60) if "image" not in record]
    workspace = write_workspace(tmp_path, records)
    attach(make("qwen3-moe")).save_pretrained(workspace / "model")
    make_tokenizer().save_pretrained(workspace / "model")

    def recipe(output: str, batch_size: int = 2, trainer: dict | None = None) -> Recipe:
        moe = MoEOptions(gradient_experts=0)
        return recipe_of(workspace, output, batch_size, trainer).but(stages=(3,), moe=moe, image_root=None)

    run(recipe("one", 4))
    of_two(recipe("two"))
    of_two(recipe("shared", trainer={"fsdp": True, "use_cpu": False}), like_gpus=True)
    for other in ("two", "shared"):
        assert_same_run(workspace / "one", workspace / other)
