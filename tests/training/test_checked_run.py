"""What a run refuses before anything is written or trained: options, models, records."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_runs import make_recipe
from tiny import make, make_language_model, make_llava, make_records, make_tokenizer, write_workspace

from evomoe import ROUTERS, upcycle
from evomoe.conversion.attaching import attach
from evomoe.data.conversations import ConversationDataset
from evomoe.model.loading import load_model, load_processor
from evomoe.recipe.options import MoEOptions, StageOptions
from evomoe.support.errors import OptionError
from evomoe.training.arguments import check_sharding, check_shared_out
from evomoe.training.checked_run import check_run
from evomoe.training.dry_run import describe
from evomoe.training.run import run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"expert_init": "noise", "init_options": {"sdt": 0.1}},
            "init.options: init 'noise' takes no 'sdt'; it takes std=0.001",
        ),
        ({"expert_init": "noise", "init_options": {"std": "x"}}, "init_options.std: init 'noise' takes a number, not 'x'"),
        ({"init_options": {"experts": "/nowhere.safetensors"}}, "there is no /nowhere.safetensors"),
        (
            {"moe": MoEOptions(gate="normalised", router_gradient="chosen")},
            "^gate: 'normalised' with one expert .* would get no gradient from the language",
        ),
        ({"stage2": StageOptions(train="router")}, "^stage2.train: .* has no parameters in 'router'"),
        ({"trainer": {"report_to": "wandb"}}, "^trainer: .*report_to: .*pip install wandb"),
        ({"trainer": {"deepspeed": "zero2.json"}}, "^trainer: .*: deepspeed is not installed: pip install .evomoe.deepspeed"),
    ],
)
def test_what_would_be_refused_later_is_refused_before_stage_1(workspace, change, message, monkeypatch):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    monkeypatch.setattr("evomoe.training.arguments.is_deepspeed_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        run(make_recipe(workspace, stages=(1, 2, 3)).but(**change))
    assert not (workspace / "run").exists()


def test_a_text_only_model_names_the_stage_that_needs_pictures_and_what_to_do(tmp_path):
    workspace = write_workspace(
        tmp_path, [{key: r[key] for key in r if key != "image"} for r in make_records() if "image" not in r]
    )
    make_language_model().save_pretrained(workspace / "text")
    make_tokenizer().save_pretrained(workspace / "text")
    recipe = make_recipe(workspace, stages=(1, 2, 3)).but(model=str(workspace / "text"))
    with pytest.raises(
        ValueError, match="^stage1.train: .*'projector'. It is text-only: give `stages=2 3` or `stage1.train=text`"
    ):
        describe(recipe)
    assert describe(recipe.but(stages=(2, 3))) and describe(recipe.but(stage1=dataclasses.replace(recipe.stage1, train="text")))
    with pytest.raises(ValueError, match="It is text-only[.]"):
        describe(recipe.but(stages=(0,)))


def test_a_processor_that_needs_torchvision_says_so_in_a_line(workspace, monkeypatch):
    def need_torchvision(*args, **kwargs):
        raise ImportError("\nQwen2VLVideoProcessor requires the Torchvision library but it was not found.\nCheck out\n")

    monkeypatch.setattr("evomoe.model.loading.AutoProcessor.from_pretrained", need_torchvision)
    with pytest.raises(
        ValueError, match="model: its processor .* needs torchvision: pip install 'evomoe.video.'.* of its own index.$"
    ):
        describe(make_recipe(workspace))


def test_a_model_without_chat_template_is_refused_at_once(workspace):
    (workspace / "model" / "chat_template.jinja").unlink()
    recipe = make_recipe(workspace)
    for start in (run, describe):
        with pytest.raises(ValueError, match="chat template"):
            start(recipe)
    assert not (workspace / "run").exists()


def test_stage_3_alone_needs_experts_from_somewhere(workspace):
    with pytest.raises(ValueError, match="^expert_init: 'evolved' needs Stage II .* `init_options=experts=FILE`"):
        run(make_recipe(workspace, stages=(3,)))


def test_bad_records_stop_the_run_before_training_or_are_skipped_and_listed(tmp_path):
    records = make_records()
    records[5]["image"] = "missing.png"
    workspace = write_workspace(tmp_path, records)
    recipe = make_recipe(workspace, stages=(2,), steps=2)
    with pytest.raises(ValueError, match=r"record 5 .*missing.png"):
        run(recipe)
    assert not Path(recipe.output).exists()
    skipping = recipe.but(output=str(workspace / "skipping"), on_bad_record="skip")
    run(skipping)
    assert "missing.png" in (Path(skipping.output) / "skipped_records.txt").read_text()


@pytest.mark.parametrize(
    "change",
    [{"router": "dtrr"}, {"gate": "soft"}, {"rule": "emma"}, {"moe_layers": "some"}, {"aux_losses": {"balanced": 1.0}}],
)
def test_a_wrong_name_is_refused_before_the_first_stage(workspace, change):
    ((_, value),) = change.items()
    wrong = next(iter(value)) if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=f"there is no '{wrong}'"):
        run(make_recipe(workspace).but(**change))
    assert not (workspace / "run").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"train": "rooter"}, "no part 'rooter'"),
        ({"trainer": {"learning_rat": 1}}, "did you mean 'learning_rate'"),
        ({"trainer": {"bf16": "maybe"}}, "stage 2: Field 'bf16' expected bool, got str"),
        ({"trainer": {"save_steps": "x"}}, "stage 2: Field 'save_steps' expected .*, got str"),
        ({"trainer": {"lr_scheduler_type": "cosin"}}, "stage 2: cosin is not a valid SchedulerType"),
    ],
)
def test_a_mistyped_option_is_named_before_anything_is_written(workspace, option, message):
    recipe = make_recipe(workspace, stages=(2,))
    with pytest.raises(OptionError, match=message) as caught:
        run(recipe.but(stage2=dataclasses.replace(recipe.stage2, **option)))
    assert caught.value.option == f"stage2.{next(iter(option))}"
    assert not (workspace / "run").exists()


def test_a_run_that_cannot_go_on_says_that_it_begins(workspace, caplog):
    recipe = make_recipe(workspace, stages=(2,))
    run(recipe, resume=True, report=False)
    assert f"There is no run in {recipe.output} yet" in caplog.text
    caplog.clear()
    run(recipe, resume=True, report=False)
    assert "There is no run" not in caplog.text


def test_a_wrong_training_argument_is_named_where_it_stands(workspace):
    recipe = make_recipe(workspace, stages=(2,)).but(trainer={"bf16": "maybe"})
    with pytest.raises(OptionError, match="^trainer: "):
        check_run(recipe.but(stage2=dataclasses.replace(recipe.stage2, trainer={"weight_decay": 0.1})))
    check_run(recipe.but(stage2=dataclasses.replace(recipe.stage2, trainer={"bf16": False})))


def test_whole_numbers_will_do_for_fractions(workspace):
    recipe = make_recipe(workspace, stages=(2,)).but(trainer={"max_grad_norm": 1, "neftune_noise_alpha": 5})
    assert describe(recipe)


def test_records_that_training_would_refuse_stop_the_run_before_it_or_are_left_out(tmp_path):
    records = make_records(8)
    records[3]["conversations"][0]["value"] = "?.," * 60
    records[3].pop("image")
    workspace = write_workspace(tmp_path, records)
    recipe = make_recipe(workspace, stages=(2,), steps=2, max_length=60)
    for start in (run, describe):
        with pytest.raises(ValueError, match=r"record 3 .*max_length 60 would leave no answer to learn"):
            start(recipe)
    assert not Path(recipe.output).exists()
    told = describe(recipe.but(on_bad_record="skip", stages=(1, 2)))
    assert told.count("1 bad record would be left out:") == told.count("would leave no answer") == 1
    assert told.count("1 bad record would be left out, as above") == 1
    run(recipe.but(on_bad_record="skip"), report=False)
    assert "leave no answer" in (Path(recipe.output) / "skipped_records.txt").read_text()


def test_data_that_stages_share_are_read_and_checked_once(workspace, monkeypatch):
    checked = []
    check = ConversationDataset.check
    monkeypatch.setattr(ConversationDataset, "check", lambda dataset: checked.append(dataset) or check(dataset))
    describe(make_recipe(workspace, stages=(1, 2, 3)))
    assert len(checked) == 1


def test_a_sparse_model_learns_from_whom_the_recipe_says(workspace):
    upcycle(load_model(workspace / "model"), router="linear").save_pretrained(workspace / "sparse")
    load_processor(workspace / "model").save_pretrained(workspace / "sparse")
    recipe = make_recipe(workspace, stages=(3,)).but(model=str(workspace / "sparse"), allow_collapsed_experts=True)
    recipe = recipe.but(moe=MoEOptions(router_gradient="chosen", gradient_experts=2))
    trained = load_model(run(recipe, report=False))
    assert trained.config.moe.of_training() == {"router_gradient": "chosen", "gradient_experts": 2}
    assert trained.config.moe.router == "linear"


def test_ways_to_share_a_model_out_that_would_not_do_so_are_refused(workspace):
    sharded = make_recipe(workspace).but(trainer={"fsdp": True})
    with pytest.raises(OptionError, match="on a CPU every process would hold the whole model"):
        check_run(sharded)
    plain = {"fsdp": None, "fsdp_config": None, "use_cpu": False, "deepspeed": None}
    with pytest.raises(ValueError, match="deepspeed: on a CPU"):
        check_sharding(SimpleNamespace(**plain | {"deepspeed": "zero2.json", "use_cpu": True}))
    with pytest.raises(ValueError, match="model without weights"):
        check_sharding(SimpleNamespace(**plain | {"fsdp": True, "fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}}))


def zero(stage: int, **more) -> Any:
    """Arguments of the Trainer for a stage of ZeRO."""
    settings = {"zero_optimization.stage": stage, **more}
    config = SimpleNamespace(get_value=lambda name, default=None: settings.get(name, default))
    return SimpleNamespace(fsdp=None, deepspeed="zero.json", hf_deepspeed_config=config)


def test_what_cannot_be_shared_out_is_refused(workspace):
    recipe = make_recipe(workspace)
    dense, sparse = make_llava(), upcycle(make_llava(), router="modality+shared")
    check_shared_out(recipe, 3, zero(3), upcycle(make_llava()))
    sharded = SimpleNamespace(fsdp=True, deepspeed=None)
    for way, arguments in (("deepspeed", zero(2)), ("fsdp", sharded)):
        with pytest.raises(ValueError, match=f"^{way}: it cannot share out .*, [.a-z0-9_]*router.mix"):
            check_shared_out(recipe, 3, arguments, sparse)
    literal = recipe.but(evolution=dataclasses.replace(recipe.evolution, rule="literal"))
    with pytest.raises(ValueError, match="dropped the gradients that `evolution.rule=literal` needs"):
        check_shared_out(literal, 2, zero(2), dense)
    for loss, router in (("contrastive", "linear"), ("budget", "anyexperts"), ("importance", "anyexperts")):
        aside = upcycle(make_llava(), router=router, aux_losses={"balance": 0.1, loss: 0.1}, num_experts_per_tok=2)
        check_shared_out(recipe, 3, zero(2), aside)
        with pytest.raises(ValueError, match=f"^deepspeed: the loss '{loss}' "):
            check_shared_out(recipe, 3, zero(3), aside)
        if loss == "contrastive":
            with pytest.raises(ValueError, match="^fsdp: the loss 'contrastive' runs experts that are shared out again"):
                check_shared_out(recipe, 3, sharded, aside)
        else:
            check_shared_out(recipe, 3, sharded, aside)
    check_shared_out(recipe, 3, zero(3), attach(make("qwen3-moe"), aux_losses={"balance": 0.1}))
    with pytest.raises(ValueError, match="cannot evolve from weights on an NVMe disk"):
        check_shared_out(recipe, 2, zero(3, **{"zero_optimization.offload_param.device": "nvme"}), dense)


def test_a_router_of_ones_own_is_tried_before_anything_trains(workspace, monkeypatch):
    class TooWide(ROUTERS["linear"]):
        def forward(self, x_TD, modality):
            return torch.cat([super().forward(x_TD, modality)] * 2, -1)

    monkeypatch.setitem(ROUTERS, "too-wide", TooWide)
    with pytest.raises(
        OptionError, match=r"router: '.*' was tried on 5 random tokens .*\(5, 8\) float32; \(5, 4\) float32 is expected"
    ):
        check_run(make_recipe(workspace, moe=MoEOptions(router="too-wide")))
