"""DeepSpeed's ZeRO-2 and ZeRO-3 with two processes on CPUs (gloo): all three stages are the run of one process, also when resumed.

It needs an environment of its own, which `make test-distributed` makes.
"""

from dataclasses import replace

import pytest
from tiny import make, make_records, make_tokenizer, write_workspace
from two_processes import DEEPSPEED, assert_same_run, needs_deepspeed, of_two, recipe_of, zero

from evomoe.conversion.attaching import attach
from evomoe.recipe.options import MoEOptions
from evomoe.recipe.recipe import Recipe
from evomoe.training.run import run


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("killed", ["", "warmup", "evolution", "routing"])
def test_two_processes_train_what_one_does(workspace, stage, killed):
    run(recipe_of(workspace, "one", 4))
    two, how = recipe_of(workspace, "two", 2, zero(workspace, stage)), {"python": DEEPSPEED, "like_gpus": True}
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
    of_two(recipe("two", 2, zero(workspace, 3)), python=DEEPSPEED, like_gpus=True)
    assert_same_run(workspace / "one", workspace / "two")


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3-moe", "qwen2-moe", "olmoe"])
def test_models_that_were_sparse_before(tmp_path, family):
    """Their MoE layers lie within blocks of their own, which may hold a shared expert too."""
    records = [{key: record[key] for key in record if key != "image"} for record in make_records(60) if "image" not in record]
    workspace = write_workspace(tmp_path, records)
    attach(make(family), aux_losses={"balance": 0.1}).save_pretrained(workspace / "model")
    make_tokenizer().save_pretrained(workspace / "model")

    def recipe(output: str, batch_size: int = 2, trainer: dict | None = None) -> Recipe:
        moe = MoEOptions(gradient_experts=0, aux_losses={"balance": 0.1})
        return recipe_of(workspace, output, batch_size, trainer).but(stages=(3,), moe=moe, image_root=None)

    run(recipe("one", 4))
    of_two(recipe("two", trainer=zero(workspace, 3)), python=DEEPSPEED, like_gpus=True)
    assert_same_run(workspace / "one", workspace / "two")
