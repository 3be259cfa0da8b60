"""Low-rank adapters in the place of weights: what trains, what is left, what goes on."""

import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from small_runs import changed, make_recipe, under, weights
from tiny import FAMILIES, make, make_llava
from transformers import AutoModelForImageTextToText

from evomoe import upcycle
from evomoe.support.errors import OptionError
from evomoe.training.dry_run import describe
from evomoe.training.lora import Adapters
from evomoe.training.run import run
from evomoe.training.trainable import set_trainable


def with_lora(recipe, stage: int, rank: int = 4, **changes):
    return recipe.but(**{f"stage{stage}": replace(recipe.stage(stage), lora=rank, **changes)})


def names_that_train(model) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_stand_beside_every_linear_map_that_would_train_and_leave_the_model_as_it_was(family):
    model = make(family)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    set_trainable(model, "text", ())
    adapters = Adapters(model, 4, 8)
    names = names_that_train(model)
    assert names and all(".lora_" in name for name in names)
    assert not any("lm_head" in name or "vision" in name for name in names)
    adapters.merge()
    assert {name for name, _ in model.named_parameters()} == before.keys()
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_a_stage_leaves_an_ordinary_model_and_the_adapters_that_make_it(workspace):
    folder = run(with_lora(make_recipe(workspace, stages=(1,)), 1))
    names = changed(workspace / "model", folder)
    assert under(names, "_proj", "fc", "linear") and not under(names, "norm") and "lm_head.weight" not in names
    kept = json.loads((folder.parent / "adapter" / "adapter_config.json").read_text())
    base = AutoModelForImageTextToText.from_pretrained(kept["base_model_name_or_path"])
    again = PeftModel.from_pretrained(base, folder.parent / "adapter").merge_and_unload()
    merged = weights(folder)
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(tensor, merged[name])


def test_every_stage_goes_on_from_it(workspace):
    recipe = with_lora(make_recipe(workspace, stages=(1, 2, 3)), 1)
    recipe = with_lora(recipe, 3, train="router+experts")
    final = run(recipe)
    assembled, trained = workspace / "run" / "stage2_evolution" / "model", weights(final)
    first = weights(assembled)["model.language_model.layers.0.mlp.gate_proj.weight"]
    assert not torch.equal(trained["model.language_model.layers.0.mlp.experts.0.gate_proj.weight"], first)
    assert not any("lora" in name for name in trained)
    assert (workspace / "run" / "report.md").is_file() and not (final.parent / "adapter").exists()


def test_the_router_trains_as_it_is_beside_the_adapters_of_experts():
    model = upcycle(make_llava(), expert_init="noise", shared_expert=True)
    set_trainable(model, "router+experts", model.config.moe.moe_layers)
    Adapters(model, 4, 8)
    names = names_that_train(model)
    routers = [name for name in names if ".router." in name or "shared_expert_gate" in name]
    assert routers and not any("lora" in name for name in routers)
    assert all(".lora_" in name for name in names if name not in routers)
    assert {name.split(".experts.")[1].split(".")[0] for name in names if ".experts." in name} == {"0", "1", "2", "3"}


def test_a_killed_stage_goes_on_bit_by_bit(workspace, kill_at):
    recipe = with_lora(make_recipe(workspace, stages=(1,)), 1)
    straight = weights(run(recipe.but(output=str(workspace / "straight"))))
    kill_at["warmup"] = 3
    with pytest.raises(RuntimeError, match="killed"):
        run(recipe)
    kill_at.clear()
    resumed = weights(run(recipe, resume=True))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in straight.items())


def test_the_dry_run_counts_the_adapters(workspace):
    recipe = make_recipe(workspace, stages=(1,))
    whole, adapted = describe(recipe), describe(with_lora(recipe, 1))
    assert "trains text+projector: 41.31 k of 64.86 k" in whole and "lora_A" in adapted

    def gradients(text: str) -> str:
        return text.partition("gradients ")[2].partition(",")[0]

    assert float(gradients(adapted).split()[0]) < float(gradients(whole).split()[0])


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        (2, {}, "^stage2.lora: experts evolve from the weights"),
        (3, {}, "^stage3.lora: none of the weights that the stage trains is that of a linear map"),
        (1, {"lora_alpha": 0}, "^stage1.lora_alpha: 0 must be a whole number from 1"),
        (1, {"trainer": {"fsdp": True}}, "^stage1.lora: it was not tried with fsdp|fsdp: on a CPU"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(workspace, stage, changes, message):
    (workspace / "model" / "model.safetensors").unlink()
    with pytest.raises(OptionError, match=message):
        describe(with_lora(make_recipe(workspace, stages=(1, 2, 3)), stage, **changes))


def test_without_peft_the_message_says_what_to_install(workspace, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(OptionError, match=r"^stage1.lora: it needs peft: pip install 'evomoe\[lora\]'"):
        describe(with_lora(make_recipe(workspace, stages=(1,)), 1))
