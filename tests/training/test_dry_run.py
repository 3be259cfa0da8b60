"""What a run would do, told without weights: what trains, how many steps, what is too large."""

import dataclasses

import pytest
from small_runs import make_recipe

from evomoe.conversion.upcycled_folder import upcycle_folder
from evomoe.training.dry_run import describe
from evomoe.training.run import run


def test_dry_run_tells_what_would_train_and_loads_no_weights(workspace):
    (workspace / "model" / "model.safetensors").unlink()
    text = describe(make_recipe(workspace, stages=(1, 2, 3)))
    assert "4 layers" in text and "MoE layers: 0, 2" in text
    assert "Stage 2 (evolution): 24 records" in text and "4 steps of 4 x 2 records" in text
    assert "a step takes" not in text and "Warning" not in text
    assert "trains ffn: 9.22 k of" in text and "layers.0.mlp.gate_proj.weight" in text
    assert not (workspace / "run").exists()


def test_dry_run_warns_of_batches_larger_than_the_data_and_of_large_routers(workspace):
    recipe = make_recipe(workspace)
    text = describe(recipe.but(stage2=dataclasses.replace(recipe.stage2, accumulation=7), router_options={}))
    assert text.count("a step takes 28 records, more than there are; smaller: `stage2.batch_size`, `stage2.accumulation`") == 1
    warning = "the router of layer 0 has 204.04 k parameters, the experts that a token runs there 4.61 k; smaller: `router_options.hypernet_width=16` `router_options.rank=4`"
    assert text.count(warning) == 1
    assert warning in upcycle_folder(recipe.model, workspace / "sparse")
    assert "Warning" not in upcycle_folder(recipe.model, workspace / "small", router="linear")


def test_dry_run_tells_how_far_a_run_to_resume_has_come(workspace, kill_at):
    recipe = make_recipe(workspace)
    kill_at["routing"] = 3
    with pytest.raises(RuntimeError, match="killed"):
        run(recipe)
    stages = [line for line in describe(recipe, resume=True).splitlines() if line.startswith("Stage ")]
    assert [line.rpartition("; ")[2] for line in stages] == ["finished", "goes on after step 2"]
