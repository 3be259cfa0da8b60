"""DeepSpeed's ZeRO-2 and ZeRO-3 with two processes on CPUs (gloo): all three stages are the run of one process, also when resumed.

It needs an environment of its own: `make test-distributed` makes it and names its interpreter in EVOMOE_DEEPSPEED.
"""

import json
import os
from dataclasses import replace

import pytest
from two_processes import assert_same_run, of_two, recipe_of

from evomoe.recipe.recipe import Recipe
from evomoe.training.run import run

PYTHON = os.environ.get("EVOMOE_DEEPSPEED", "")
needs_deepspeed = pytest.mark.skipif(not PYTHON, reason="EVOMOE_DEEPSPEED names no interpreter with DeepSpeed")


def zero(workspace, stage: int) -> dict:
    """The Trainer's arguments for a stage of ZeRO. Under ZeRO-3 each weight is shared out, however small."""
    automatic = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    sharing = {"stage": stage} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {})
    settings = {"zero_optimization": sharing} | dict.fromkeys(automatic, "auto")
    path = workspace / f"zero{stage}.json"
    path.write_text(json.dumps(settings))
    return {"deepspeed": str(path), "use_cpu": False}


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("killed", ["", "warmup", "evolution", "routing"])
def test_two_processes_train_what_one_does(workspace, stage, killed):
    run(recipe_of(workspace, "one", 4))
    two, how = recipe_of(workspace, "two", 2, zero(workspace, stage)), {"python": PYTHON, "like_gpus": True}
    if killed:
        of_two(two, killed={killed: 3}, **how)
        (checkpoint,) = (workspace / "two").glob("*/checkpoints/checkpoint-2")
        assert len([*checkpoint.glob("global_step*/*zero_pp_rank_*optim_states.pt")]) == 2  # as DeepSpeed writes it
    of_two(two, *["--resume"][: bool(killed)], **how)
    assert_same_run(workspace / "one", workspace / "two")


LAYERS = {
    "dtr": ({"router": "dtr", "router_options": {"hypernet_width": 4, "rank": 2}}, {}),
    "experts without tokens": ({"num_experts": 32, "router_gradient": "chosen"}, {}),
    "experts without tokens train": ({"num_experts": 32, "aux_losses": {"balance": 0.1}}, {"train": "router+experts"}),
    "virtual experts": (
        {"router": "anyexperts", "router_options": {"virtual": "constant", "num_virtual": 2}, "num_experts_per_tok": 2},
        {},
    ),
    "shared expert": ({"shared_expert": True, "router": "modality", "router_options": {}}, {"train": "router+experts"}),
}


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("kind", LAYERS)
def test_layers_whose_weights_are_shared_out(workspace, kind):
    moe, stage3 = LAYERS[kind]

    def recipe(output: str, batch_size: int, trainer: dict | None = None) -> Recipe:
        made = recipe_of(workspace, output, batch_size, trainer)
        return made.but(
            stages=(3,), expert_init="noise", stage3=replace(made.stage3, **stage3), moe=replace(made.moe, **moe), packing=True
        )

    run(recipe("one", 4))
    of_two(recipe("two", 2, zero(workspace, 3)), python=PYTHON, like_gpus=True)
    assert_same_run(workspace / "one", workspace / "two")
