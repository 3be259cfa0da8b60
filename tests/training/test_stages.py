"""The stages of a run on a tiny model: what trains, what is written, what each stage starts from."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import changed, make_recipe, under, weights
from tiny import make_llava, make_processor, make_records, write_workspace
from transformers import AutoModelForImageTextToText

from evomoe import upcycle
from evomoe.model.loading import load_config, load_model
from evomoe.recipe.options import EvolutionOptions, MoEOptions
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.run_folder import RunFolder
from evomoe.training.dry_run import describe
from evomoe.training.run import run


def test_each_stage_trains_its_own_parameters_and_nothing_else(workspace):
    recipe = make_recipe(workspace, stages=(0, 1, 2, 3))
    final = run(recipe)
    stages = [RunFolder(recipe.output).stage(n) for n in range(4)]
    assert under(changed(workspace / "model", stages[0].model), "multi_modal_projector")
    stage1 = changed(stages[0].model, stages[1].model)
    assert under(stage1, "multi_modal_projector", "language_model", "lm_head")
    assert {"lm_head.weight", "model.language_model.embed_tokens.weight", "model.multi_modal_projector.linear_1.weight"} <= stage1
    stage2 = changed(stages[1].model, stages[2].model)
    assert stage2 == {
        f"model.language_model.layers.{layer}.mlp.{name}.weight"
        for layer in (0, 2)
        for name in ("gate_proj", "up_proj", "down_proj")
    }

    sparse, evolved = weights(final), load_file(stages[2].path / "evolved_experts.safetensors")
    dense = weights(stages[2].model)
    for name, tensor in sparse.items():
        if ".router." in name:
            continue
        layer_experts = name.replace("model.language_model.", "").replace(".mlp.", ".")
        if ".experts." not in name:
            assert torch.equal(tensor, dense[name]), name
        elif ".experts.0." in name:
            assert torch.equal(tensor, dense[name.replace(".experts.0.", ".")]), name
        else:
            assert torch.equal(tensor, evolved[layer_experts]), name
    fresh = upcycle(
        AutoModelForImageTextToText.from_pretrained(stages[2].model),
        expert_init="evolved",
        init_options={"experts": stages[2].path / "evolved_experts.safetensors"},
        seed=recipe.seed,
        **dataclasses.asdict(recipe.moe),
    )
    routers = {name for name in sparse if ".router." in name}
    assert all(not torch.equal(sparse[name], fresh.state_dict()[name]) for name in routers)


def test_a_run_leaves_what_a_person_looks_for(workspace):
    recipe = make_recipe(workspace)
    run(recipe)
    output = Path(recipe.output)
    assert Recipe.load(output / "recipe.json") == recipe
    metrics = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    stage2, stage3 = ([m for m in metrics if m["stage"] == name and "loss" in m] for name in ("evolution", "routing"))
    assert [m["step"] for m in stage2] == [m["step"] for m in stage3] == [1, 2, 3, 4]
    assert all(m["distance/expert2"] > 0.5 for m in stage2)  # beta is at least 0.9
    for m in stage3:
        assert m["aux/balance"] > 0 and 1 <= m["effective_experts"] <= 4
        for kind in ("text", "image"):
            assert sum(m[f"load/{kind}/expert{n}"] for n in range(1, 5)) == pytest.approx(1)
    report = (output / "report.md").read_text()
    for picture in ("distances.png", "expert_load.png", "router_logits.png"):
        assert picture in report and (output / picture).stat().st_size > 5000
    left = {p.name for p in output.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".partial")}
    assert not left and not list(output.glob("*/checkpoints"))


def test_experts_evolve_once_per_optimiser_step_that_happened(workspace, monkeypatch):
    """Two micro-batches make a step; a step that the gradient scaler skipped does not count."""
    from accelerate.optimizer import AcceleratedOptimizer

    from evomoe.training.evolution import ExpertEvolution

    calls: list[int] = []
    original = ExpertEvolution.after_step

    def after_step(self, happened):
        original(self, happened)
        calls.append(self.step)

    monkeypatch.setattr(ExpertEvolution, "after_step", after_step)
    run(make_recipe(workspace, stages=(2,)), report=False)
    assert calls == [1, 2, 3, 4]
    calls.clear()
    monkeypatch.setattr(AcceleratedOptimizer, "step_was_skipped", property(lambda self: True))
    run(make_recipe(workspace, "skipped", stages=(2,)), report=False)
    assert calls == [0, 0, 0, 0]


def test_equal_experts_of_any_initialiser_stop_stage_3_when_only_the_router_trains(workspace):
    recipe = make_recipe(workspace, stages=(3,), steps=2, expert_init="replicate")
    with pytest.raises(ValueError, match="All experts are equal .*'replicate'.*router\\+experts"):
        run(recipe)
    both = dataclasses.replace(recipe.stage3, train="router+experts")
    assert run(recipe.but(output=str(workspace / "both"), stage3=both)).is_dir()


def test_evolved_experts_that_are_equal_to_one_another_are_named(workspace, caplog):
    """Experts that never moved, and such as follow with the same fixed beta."""
    recipe = make_recipe(workspace, steps=2)
    run(recipe.but(stop_fraction=0.0), report=False)
    assert "Experts 2, 3, 4 are equal to one another in every layer" in caplog.text
    caplog.clear()
    run(recipe.but(output=str(workspace / "same"), beta_ranges=((0.9, 0.9), (0.5, 0.5), (0.9, 0.9))), report=False)
    assert "Experts 2, 4 are equal to one another" in caplog.text
    caplog.clear()
    run(recipe.but(output=str(workspace / "others")), report=False)
    assert "equal to one another" not in caplog.text


def test_records_that_are_cut_are_counted(tmp_path, caplog):
    records = make_records(8)
    records[3]["conversations"][1]["value"] = "?.," * 30
    workspace = write_workspace(tmp_path, records)
    run(make_recipe(workspace, stages=(2,), steps=2, max_length=60), report=False)
    assert "Cut at max_length 60: 1 of 8 records." in caplog.text


@pytest.mark.slow
def test_two_processes_train_through_the_command_line_packed_or_not(workspace):
    options = ["--model", "model", "--data", "data.json", "--image-root", "images", "--stages", "2", "3", "--router", "linear"]
    small = [f"--stage{n}.{option}" for n in (2, 3) for option in ("steps=2", "batch-size=4", "accumulation=1")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "evomoe.cli"]
    for output, packing in (("run", "--no-packing"), ("packed", "--packing")):
        done = subprocess.run(
            [*torchrun, "train", *options, *small, "--output", output, packing, "--trainer", "ddp_backend=gloo"],
            cwd=workspace,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    padded, packed = (weights(workspace / output / "stage3_routing" / "model") for output in ("run", "packed"))
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=1e-4)
    assert (workspace / "run" / "report.md").is_file()


def test_collapsed_experts_stop_stage_3_unless_allowed(workspace):
    recipe = make_recipe(workspace, evolution=EvolutionOptions(beta_ranges=((0.0, 0.0),) * 3))
    with pytest.raises(ValueError, match="copies of expert 1"):
        run(recipe)
    allowed = recipe.but(output=str(workspace / "allowed"), allow_collapsed_experts=True)
    assert run(allowed).is_dir()


def test_collapsed_experts_of_another_run_are_refused_too(workspace):
    first = make_recipe(workspace, stages=(2,), evolution=EvolutionOptions(beta_ranges=((1e-6, 1e-6),) * 3))
    experts = run(first).parent / "evolved_experts.safetensors"
    recipe = make_recipe(workspace, stages=(3,)).but(output=str(workspace / "third"), init_options={"experts": str(experts)})
    with pytest.raises(ValueError, match="copies of expert 1"):
        run(recipe)
    assert run(recipe.but(allow_collapsed_experts=True)).is_dir()


def a_sparse_folder(workspace: Path) -> str:
    upcycle(make_llava(), expert_init="noise", router="linear").save_pretrained(workspace / "sparse")
    make_processor().save_pretrained(workspace / "sparse")
    return str(workspace / "sparse")


def test_a_sparse_model_is_no_start_for_the_stages_that_make_one(workspace):
    recipe = make_recipe(workspace).but(model=a_sparse_folder(workspace))
    for start in (run, describe):
        with pytest.raises(
            ValueError, match="^stages: .* is an EvoMoE model already; Stage III alone trains it further: `stages=3`"
        ):
            start(recipe)


def test_stage_3_goes_on_with_a_sparse_model(workspace):
    recipe = make_recipe(workspace, stages=(3,), steps=3).but(model=a_sparse_folder(workspace), moe=MoEOptions())
    before, after = load_model(recipe.model), load_model(run(recipe))
    assert after.config.moe == before.config.moe and after.config.moe.router == "linear"
    changed = {name for name, weight in before.state_dict().items() if not torch.equal(weight, after.state_dict()[name])}
    assert changed and all(".router." in name for name in changed)
    assert "router linear" in describe(recipe.but(output=str(workspace / "other")))
    written = Recipe.load(workspace / "run/recipe.json")
    assert written.moe.router == "linear" and written.expert_init == "noise" and written.moe_layers == "0,2"
    assert "4 experts (noise), 1 per token, router linear" in (workspace / "run/report.md").read_text()
    assert run(recipe, resume=True).is_dir()
    for change, message in (
        (
            {"num_experts_per_tok": 2},
            "sparse is an EvoMoE model already and is trained as it is; leave out `num_experts_per_tok`",
        ),
        ({"moe_layers": "all", "init_options": {"std": 1.0}}, "leave out `moe_layers`, `init_options`"),
        ({"expert_init": "replicate"}, "leave out `expert_init`"),
    ):
        with pytest.raises(ValueError, match=message):
            describe(recipe.but(output=str(workspace / "other"), **change))


def test_progress_bars_can_have_another_name_than_the_stage(workspace, capfd):
    run(make_recipe(workspace, stages=(2,), steps=2), report=False, label="dense control")
    err = capfd.readouterr().err
    assert "dense control: 100%" in err and "evolution:" not in err
    metrics = (workspace / "run" / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["stage"] for line in metrics} == {"evolution"}


@pytest.mark.parametrize(("scope", "afterwards"), [("expectation", "expectation"), ("batch", "token")])
def test_anyexperts_goes_through_a_run_with_its_losses_and_a_cut_ffn(workspace, scope, afterwards):
    moe = MoEOptions(
        num_experts=4, num_experts_per_tok=2, router="anyexperts", router_options={"rho": 0.5, "cap_scope": scope},
        aux_losses={"balance": 0.01, "importance": 0.001},
    )  # fmt: skip
    recipe = make_recipe(workspace, "any", stages=(3,), moe=moe, expert_init="partition", moe_layers="all")
    recipe = dataclasses.replace(recipe, stage3=dataclasses.replace(recipe.stage3, train="router+experts"))
    model = run(recipe)
    trained = weights(model)
    assert any(tensor.any() for name, tensor in trained.items() if "importance.outer.weight" in name)  # which starts at zero
    logged = [json.loads(line) for line in (workspace / "any" / "metrics.jsonl").read_text().splitlines()]
    assert any({"aux/importance", "load/text/expert4", "load/image/virtual4"} <= entry.keys() for entry in logged)
    assert all(1 <= entry[f"experts/{kind}"] <= 4 for kind in ("text", "image") for entry in logged if "aux/importance" in entry)
    assert "| expert 4 | virtual 1 |" in " ".join((workspace / "any" / "report.md").read_text().split())
    assert load_config(model).moe.router_options == {"rho": 0.5, "cap_scope": afterwards}


def test_anyexperts_routes_evolved_experts_through_all_stages(workspace):
    moe = MoEOptions(
        num_experts=4, num_experts_per_tok=2, router="anyexperts", router_options={"rho": 0.5}, aux_losses={"budget": 0.1}
    )
    recipe = make_recipe(workspace, "all", stages=(1, 2, 3), moe=moe, moe_layers="all")
    model = run(recipe)
    trained, dense = weights(model), weights(RunFolder(recipe.output).stage(2).model)
    experts = {name: tensor for name, tensor in trained.items() if ".experts.0." in name}
    assert experts and all(torch.equal(tensor, dense[name.replace(".experts.0.", ".")]) for name, tensor in experts.items())
    assert not any(torch.equal(tensor, trained[name.replace(".experts.0.", ".experts.3.")]) for name, tensor in experts.items())
    assert any(tensor.any() for name, tensor in trained.items() if "importance.outer.weight" in name)
    load_model(model)
