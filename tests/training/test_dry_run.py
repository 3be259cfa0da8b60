"""What a run would do, told without weights: what trains, how many steps, what is too large."""

import dataclasses
import json
import re
from types import SimpleNamespace

import pytest
from small_runs import make_recipe
from transformers import TrainingArguments

from evomoe import ROUTERS
from evomoe.conversion.upcycled_folder import upcycle_folder
from evomoe.model.routers.linear import LinearRouter
from evomoe.recipe.dry_run_options import DryRunOptions
from evomoe.recipe.run_folder import RunFolder
from evomoe.support.text import bytes_in
from evomoe.training.dry_run import _checkpoints, describe
from evomoe.training.run import run


def test_dry_run_tells_what_would_train_and_loads_no_weights(workspace):
    (workspace / "model" / "model.safetensors").unlink()
    text = describe(make_recipe(workspace, stages=(1, 2, 3)))
    assert "4 layers" in text and "MoE layers: 0, 2" in text
    assert "Stage 2 (evolution): 24 records" in text and "4 steps of 4 x 2 records" in text
    assert "a step takes" not in text and "Warning" not in text
    assert "trains ffn: 9.22 k of" in text and "layers.0.mlp.gate_proj.weight" in text
    assert not (workspace / "run").exists()


def test_batches_larger_than_the_data_and_large_routers_are_told(workspace, caplog):
    recipe = make_recipe(workspace)
    few = recipe.but(stage2=dataclasses.replace(recipe.stage2, accumulation=7, steps=1), stages=(2,))
    text = describe(few.but(router_options={}, stages=(2, 3)))
    said = "Stage 2: a step takes 28 records, more than the 24 there are; smaller: `stage2.batch_size`, `stage2.accumulation`."
    assert text.count(said) == 1 and text.count("a step takes") == 1
    run(few)
    assert caplog.text.count(said) == 1
    warning = "the router of layer 0 has 204.04 k parameters, the experts that a token runs there 4.61 k; smaller: `router_options.hypernet_width=16` `router_options.rank=4`"
    assert text.count(warning) == 1
    assert warning in upcycle_folder(recipe.model, workspace / "sparse")
    assert "Warning" not in upcycle_folder(recipe.model, workspace / "small", router="linear")


def test_dry_run_tells_how_far_a_run_to_resume_has_come(workspace, kill_at):
    recipe = make_recipe(workspace)
    anew = describe(recipe, options=DryRunOptions(measure=1))
    kill_at["routing"] = 3
    with pytest.raises(RuntimeError, match="killed"):
        run(recipe)
    text = describe(recipe, resume=True, options=DryRunOptions(measure=1))
    stages = [line for line in text.splitlines() if line.startswith("Stage ")]
    assert [line.rpartition("; ")[2] for line in stages] == ["finished", "goes on after step 2"]
    assert "\nIn all: 8 steps in " in anew and "\nIn all: 2 steps left in " in text
    assert text.count("  measured over ") == text.count("  tensors of ") == 1 and "(h:mm:ss) for 2 steps" in text


def test_dry_run_tells_the_memory_of_each_stage(workspace):
    text = describe(make_recipe(workspace, stages=(1, 2, 3)))
    memory = [line for line in text.splitlines() if line.startswith("  tensors of the process: at most ")]
    assert len(memory) == 3 and ["evolved experts" in line for line in memory] == [False, True, False]
    assert "with 4 rows of 33 tokens, the longest records" in text and "more than this device has" not in text
    shared = describe(make_recipe(workspace, stages=(1,)), options=DryRunOptions(processes=4))
    assert "  tensors of each of 4 processes: at most " in shared
    recipe = make_recipe(workspace)
    offloaded = describe(recipe.but(evolution=dataclasses.replace(recipe.evolution, offload=True)))
    assert "evolved experts 110.6 kB" in text and "evolved experts" not in offloaded


def test_dry_run_says_if_the_device_is_too_small_and_why_there_is_no_estimate(workspace, monkeypatch):
    recipe = make_recipe(workspace, stages=(3,), expert_init="noise")
    monkeypatch.setattr("evomoe.training.dry_run.device_memory", lambda: 1_000_000)
    said = describe(recipe)
    assert "That is more than this device has, 1.0 MB. Smaller: `trainer` with gradient_checkpointing=true, `stage3" in said
    fewer = "`num_experts`, `moe_layers`, several devices and `trainer` with fsdp=true."
    assert f"`max_length`, `dtype=bfloat16`, {fewer}" in said and "offload" not in said and "lora" not in said
    chosen = recipe.but(trainer={"gradient_checkpointing": True}, dtype="bfloat16", stage3={"batch_size": 1})
    alone = describe(chosen, options=DryRunOptions(device_memory="10kB"))  # less than the weights, so that batches say nothing
    assert f"Smaller: {fewer}" in alone and "`max_length`" not in alone
    told = describe(recipe, options=DryRunOptions(device_memory="24GB"))
    assert "    It fits into 24.0 GB: 24.0 GB to spare." in told and "Smaller" not in told

    class Looks(LinearRouter):
        def forward(self, x_TD, modality):
            return super().forward(x_TD / float(x_TD.abs().max()), modality)

    monkeypatch.setitem(ROUTERS, "looks", Looks)
    moe = dataclasses.replace(recipe.moe, router="looks", router_options={})
    text = describe(recipe.but(moe=moe))
    assert "  memory: no estimate (" in text and "learning rate" in text


def test_dry_run_measures_steps_and_keeps_nothing(workspace):
    before = sorted(workspace.rglob("*"))
    text = describe(make_recipe(workspace, stages=(1, 2, 3)), options=DryRunOptions(measure=2))
    assert len(re.findall(r"measured over 2 steps: [\d.e-]+ s each, 0:00:0\d \(h:mm:ss\) for 4 steps", text)) == 3
    assert text.endswith("Nothing was kept.") and sorted(workspace.rglob("*")) == before


def test_what_is_measured_is_checked(workspace):
    for option, value in {"measure": -1, "processes": 0, "device_memory": "24"}.items():
        with pytest.raises(ValueError, match=f"^{option}: "):
            describe(make_recipe(workspace), options=DryRunOptions(**{option: value}))
        if value == "24":
            value = "24GB"
        with pytest.raises(ValueError, match=f"^{option}: "):
            DryRunOptions(**{option: 2 if value in (-1, 0) else value}).check()


def test_records_beyond_the_model_s_positions_are_told(workspace, caplog):
    path = workspace / "model" / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["max_position_embeddings"] = 32
    path.write_text(json.dumps(config))
    said = "The longest record has 33 tokens; the model knows 32 positions (max_position_embeddings). Give `max_length=32`"
    recipe = make_recipe(workspace, stages=(1,))
    assert said in describe(recipe) and said not in describe(recipe.but(max_length=32))
    run(recipe, report=False)
    assert said in caplog.text


def test_dry_run_tells_the_disk_space_of_models_and_checkpoints(workspace, kill_at, monkeypatch):
    recipe = make_recipe(workspace, stages=(1, 2, 3))
    told = re.search(r"In all: 12 steps; at most [\d.]+ .B of memory, in Stage \d; about ([\d.]+ .B) of disk space on the way, ([\d.]+ .B) in the end\.", describe(recipe))  # fmt: skip
    assert told
    most, kept = map(bytes_in, told.groups())
    kill_at["evolution"] = 3
    with pytest.raises(RuntimeError, match="killed"):
        run(recipe)
    folder = RunFolder(recipe.output).stage(2)

    def written(where):
        return sum(path.stat().st_size for path in where.rglob("*") if path.suffix in (".safetensors", ".pt"))

    (checkpoint,) = folder.checkpoints.glob("checkpoint-*")
    done = written(folder.path.parent) - written(folder.checkpoints)
    assert done + 2 * written(checkpoint) < most < 1.15 * (kept + 3 * written(checkpoint))
    kill_at.clear()
    run(recipe, resume=True)
    assert kept == pytest.approx(written(folder.path.parent), rel=0.1)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    assert "That is more than is free there, 1.0 kB. Make room, or name another `output`." in describe(
        recipe.but(output=str(workspace / "new"))
    )


@pytest.mark.parametrize(
    "given, most",
    [
        ({"save_strategy": "no"}, 0),
        ({"save_steps": 10, "save_total_limit": 2}, 3),
        ({"save_steps": 10, "save_total_limit": 50}, 10),
        ({"save_steps": 10}, 10),
        ({"save_steps": 0.25}, 4),
        ({"save_strategy": "epoch"}, 2),
        ({"save_steps": 1000}, 0),
    ],
)
def test_as_many_checkpoints_are_counted_as_will_be_there(given, most, tmp_path):
    arguments = TrainingArguments(str(tmp_path), report_to=[], **{"save_strategy": "steps"} | given)
    assert _checkpoints(arguments, 100, 40) == most


def test_the_parts_of_the_memory_add_up(workspace):
    for line in describe(make_recipe(workspace, stages=(1,)).but(trainer={"bf16": True})).splitlines():
        if found := re.fullmatch(r"  tensors of the process: at most ([\d.]+ .B); (.*)", line):
            peak, parts = bytes_in(found[1]), [bytes_in(size) for size in re.findall(r"[\d.]+ .B", found[2])]
            assert peak <= 1.04 * sum(parts)  # rounded
            return
    pytest.fail("no line of memory")
