"""The stages of a run on a tiny model: what trains, what is written, what resuming means, what is refused."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import make, make_language_model, make_llava, make_records, make_tokenizer, write_workspace
from transformers import AutoModelForImageTextToText, TrainerCallback

from evomoe import upcycle
from evomoe.conversion.upcycled_folder import upcycle_folder
from evomoe.data.conversations import ConversationDataset
from evomoe.model.loading import load_config, load_model
from evomoe.recipe.options import EvolutionOptions, MoEOptions, StageOptions
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.run_folder import RunFolder
from evomoe.training.dry_run import describe
from evomoe.training.run import run
from evomoe.training.trainable import set_trainable
from evomoe.training.trainer import EpochLengthSampler, EvoMoETrainer


def make_recipe(workspace: Path, output: str = "run", steps: int = 4, **changes) -> Recipe:
    def stage(train: str) -> StageOptions:
        return StageOptions(learning_rate=1e-2, steps=steps, batch_size=4, accumulation=2, train=train, trainer={"save_steps": 2})

    defaults = {
        "stages": (2, 3),
        "moe": MoEOptions(router_options={"hypernet_width": 4, "rank": 2}),
        "stage0": stage("projector"),
        "stage1": stage("text+projector"),
        "stage2": stage("ffn"),
        "stage3": stage("router"),
        "image_root": str(workspace / "images"),
    }
    return Recipe(str(workspace / "model"), str(workspace / "data.json"), str(workspace / output), **defaults | changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForImageTextToText.from_pretrained(folder).state_dict()


def changed(before: Path, after: Path) -> set[str]:
    """Names of the tensors that differ between two model folders of the same architecture."""
    old, new = weights(before), weights(after)
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


def under(names: set[str], *parts: str) -> bool:
    return bool(names) and all(any(part in name for part in parts) for name in names)


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


class StopAt(TrainerCallback):
    """Kills a run, without warning, after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise RuntimeError("killed")


@pytest.fixture
def kill_at(monkeypatch):
    """Makes every stage die at the end of a step, until told otherwise."""
    original = EvoMoETrainer.__init__
    wanted: dict[str, int] = {}

    def init(self, *args, **kwargs) -> None:
        original(self, *args, **kwargs)
        if kwargs["stage"] in wanted:
            self.add_callback(StopAt(wanted[kwargs["stage"]]))

    monkeypatch.setattr(EvoMoETrainer, "__init__", init)
    return wanted


@pytest.mark.parametrize("rule", ["scaled_update", "ema"])
def test_a_killed_and_resumed_run_equals_one_that_was_never_killed(workspace, kill_at, rule):
    straight = make_recipe(workspace, "straight", evolution=EvolutionOptions(rule, stop_fraction=0.75))
    killed = straight.but(output=str(workspace / "killed"))
    run(straight)
    for stage in ("evolution", "routing"):
        kill_at[stage] = 3
        with pytest.raises(RuntimeError, match="killed"):
            run(killed, resume=stage == "routing")
        del kill_at[stage]
    run(killed, resume=True)
    for stage in (2, 3):
        a, b = (RunFolder(recipe.output).stage(stage) for recipe in (straight, killed))
        assert changed(a.model, b.model) == set()
    evolved = [load_file(RunFolder(r.output).stage(2).path / "evolved_experts.safetensors") for r in (straight, killed)]
    assert all(torch.equal(evolved[0][name], evolved[1][name]) for name in evolved[0])
    steps = [(m["stage"], m["step"]) for m in map(json.loads, (workspace / "killed" / "metrics.jsonl").read_text().splitlines())]
    assert len([s for s in steps if s == ("evolution", 3)]) == 1


def test_a_half_written_checkpoint_is_not_resumed_from(workspace, kill_at):
    recipe = make_recipe(workspace)
    kill_at["evolution"] = 4
    with pytest.raises(RuntimeError, match="killed"):
        run(recipe)
    folder = RunFolder(recipe.output).stage(2)
    assert folder.last_checkpoint().name == "checkpoint-2"
    (folder.checkpoints / "checkpoint-3").mkdir()
    assert folder.last_checkpoint().name == "checkpoint-2"


def test_ctrl_c_saves_a_checkpoint_and_the_run_goes_on_from_there(workspace, monkeypatch):
    recipe = make_recipe(workspace, stages=(2,))
    original, handler = EvoMoETrainer.training_step, signal.getsignal(signal.SIGINT)

    def press_ctrl_c(self, *args, **kwargs):
        if self.state.global_step == 2 and not self.interrupt.asked:
            signal.raise_signal(signal.SIGINT)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(EvoMoETrainer, "training_step", press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        run(recipe)
    folder = RunFolder(recipe.output).stage(2)
    assert folder.last_checkpoint().name == "checkpoint-3" and not folder.model.exists()
    monkeypatch.undo()
    assert run(recipe, resume=True) == folder.model
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_existing_output_folder_is_refused_unless_the_same_run_is_resumed(workspace):
    recipe = make_recipe(workspace, stages=(2,), steps=2)
    run(recipe)
    with pytest.raises(ValueError, match="^output: .* holds a run already. Add `resume=True`"):
        run(recipe)
    with pytest.raises(ValueError, match="another recipe .*seed: 0 -> 1"):
        run(recipe.but(seed=1), resume=True)
    (workspace / "other").mkdir()
    (workspace / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="no recipe.json"):
        run(recipe.but(output=str(workspace / "other")), resume=True)
    assert (workspace / "other" / "notes.txt").read_text() == "mine"


def test_a_run_that_got_to_no_checkpoint_is_started_anew_by_any_recipe(workspace, kill_at):
    recipe, other = make_recipe(workspace, stages=(3,), expert_init="noise"), make_recipe(workspace, stages=(2,))
    kill_at["routing"], kill_at["evolution"] = 2, 3  # checkpoints are written after every second step
    for _ in range(2):
        with pytest.raises(RuntimeError, match="killed"):
            run(recipe)
    (workspace / "run" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="of another recipe .*leave out `resume` to start anew"):
        run(other, resume=True)
    with pytest.raises(RuntimeError, match="killed"):
        run(other)
    metrics = [json.loads(line) for line in (workspace / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(m["stage"], m["step"]) for m in metrics] == [("evolution", 1), ("evolution", 2)]
    assert not RunFolder(recipe.output).stage(3).path.exists() and Recipe.load(workspace / "run" / "recipe.json") == other
    with pytest.raises(ValueError, match="^output: .* holds a run already. Add `resume=True`"):  # now there is a checkpoint
        run(recipe)
    assert (workspace / "run" / "mine.txt").read_text() == "mine"


def test_a_run_whose_models_were_removed_is_still_no_place_for_another(workspace):
    recipe = make_recipe(workspace, stages=(2,), steps=2)
    final = run(recipe)
    shutil.rmtree(final.parent)
    with pytest.raises(ValueError, match="holds a run already"):
        run(recipe)
    assert (workspace / "run" / "metrics.jsonl").is_file()


def test_experts_evolve_once_per_optimiser_step_that_happened(workspace, monkeypatch):
    """Two micro-batches make a step; a step that the gradient scaler skipped does not count."""
    from accelerate.optimizer import AcceleratedOptimizer

    from evomoe.training.evolution import ExpertEvolution

    calls: list[int] = []
    original = ExpertEvolution.after_step
    monkeypatch.setattr(ExpertEvolution, "after_step", lambda self: calls.append(self.step) or original(self))
    run(make_recipe(workspace, stages=(2,)), report=False)
    assert calls == [0, 1, 2, 3]
    calls.clear()
    monkeypatch.setattr(AcceleratedOptimizer, "step_was_skipped", property(lambda self: True))
    run(make_recipe(workspace, "skipped", stages=(2,)), report=False)
    assert calls == []


def test_equal_experts_of_any_initialiser_stop_stage_3_when_only_the_router_trains(workspace):
    recipe = make_recipe(workspace, stages=(3,), steps=2, expert_init="replicate")
    with pytest.raises(ValueError, match="All experts are equal .*'replicate'.*router\\+experts"):
        run(recipe)
    both = dataclasses.replace(recipe.stage3, train="router+experts")
    assert run(recipe.but(output=str(workspace / "both"), stage3=both)).is_dir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"expert_init": "noise", "init_options": {"sdt": 0.1}},
            "init.options: init 'noise' takes no 'sdt'; it takes std=0.001",
        ),
        ({"expert_init": "noise", "init_options": {"std": "x"}}, "std of init 'noise' is 'x'; it must be a number"),
        ({"init_options": {"experts": "/nowhere.safetensors"}}, "there is no /nowhere.safetensors"),
        ({"stage2": StageOptions(train="router")}, "^stage2.train: .* has no parameters in 'router'"),
        ({"trainer": {"report_to": "wandb"}}, "^trainer: .*report_to: .*pip install wandb"),
        ({"trainer": {"deepspeed": "zero2.json"}}, "^trainer: .*: deepspeed is not installed: pip install deepspeed"),
    ],
)
def test_what_would_be_refused_later_is_refused_before_stage_1(workspace, change, message, monkeypatch):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    monkeypatch.setattr("evomoe.training.stage.is_deepspeed_available", lambda: False)
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
    with pytest.raises(ValueError, match="model: its processor .* needs torchvision: pip install torchvision$"):
        describe(make_recipe(workspace))


def test_a_model_without_chat_template_is_refused_at_once(workspace):
    (workspace / "model" / "chat_template.jinja").unlink()
    recipe = make_recipe(workspace)
    for start in (run, describe):
        with pytest.raises(ValueError, match="chat template"):
            start(recipe)
    assert not (workspace / "run").exists()


def test_records_that_are_cut_are_counted(tmp_path, caplog):
    records = make_records(8)
    records[3]["conversations"][1]["value"] = "?.," * 30
    workspace = write_workspace(tmp_path, records)
    run(make_recipe(workspace, stages=(2,), steps=2, max_length=60), report=False)
    assert "Cut at max_length 60: 1 of 8 records." in caplog.text


@pytest.mark.slow
def test_two_processes_train_through_the_command_line(workspace):
    options = ["--model", "model", "--data", "data.json", "--image-root", "images", "--output", "run", "--stages", "2", "3"]
    small = [f"--stage{n}.{option}" for n in (2, 3) for option in ("steps=2", "batch-size=2", "accumulation=1")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "evomoe.cli"]
    done = subprocess.run(
        [*torchrun, "train", *options, *small, "--trainer", "ddp_backend=gloo"],
        cwd=workspace,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (workspace / "run" / "stage3_routing" / "model" / "model.safetensors").is_file()
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
    from tiny import make_processor

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


def test_a_bias_moves_with_every_step_also_after_a_kill(workspace, kill_at):
    options = MoEOptions(8, 4, "anyexperts", {"bias_rate": 0.1, "importance_width": 4})
    recipe = make_recipe(workspace, stages=(3,), steps=4, moe=options, expert_init="noise", init_options={"std": 0.1})
    biases = [tensor for name, tensor in weights(run(recipe)).items() if name.endswith("bias.value_N")]
    assert len(biases) == 2 and all(bias.any() for bias in biases)
    killed = recipe.but(output=str(workspace / "killed"))
    kill_at["routing"] = 3
    with pytest.raises(RuntimeError, match="killed"):
        run(killed)
    del kill_at["routing"]
    again = [tensor for name, tensor in weights(run(killed, resume=True)).items() if name.endswith("bias.value_N")]
    assert all(torch.equal(one, other) for one, other in zip(biases, again, strict=True))


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
    with pytest.raises(ValueError, match=message):
        run(recipe.but(stage2=dataclasses.replace(recipe.stage2, **option)))
    assert not (workspace / "run").exists()


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
    assert "1 bad record would be left out" in describe(recipe.but(on_bad_record="skip"))
    run(recipe.but(on_bad_record="skip"), report=False)
    assert "leave no answer" in (Path(recipe.output) / "skipped_records.txt").read_text()


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


def test_progress_bars_can_have_another_name_than_the_stage(workspace, capfd):
    run(make_recipe(workspace, stages=(2,), steps=2), report=False, label="dense control")
    err = capfd.readouterr().err
    assert "dense control: 100%" in err and "evolution:" not in err
    metrics = (workspace / "run" / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["stage"] for line in metrics} == {"evolution"}


@pytest.mark.parametrize("family", ["llava", "llava-phi"])
@pytest.mark.parametrize(
    ("what", "parts"),
    [
        ("projector", ("multi_modal_projector",)),
        ("text", ("language_model", "lm_head")),
        ("vision", ("vision_tower",)),
        ("ffn", ("language_model.layers.0.mlp", "language_model.layers.2.mlp")),
        ("ffn+projector", ("language_model.layers.0.mlp", "language_model.layers.2.mlp", "multi_modal_projector")),
    ],
)
def test_parts_of_a_dense_model(family, what, parts):
    model = make(family)
    names = set(set_trainable(model, what, [0, 2]))
    assert under(names, *parts) and names == {n for n, p in model.named_parameters() if p.requires_grad}
    assert names == {n for n, _ in model.named_parameters() if any(part in n for part in parts)}


def test_parts_of_a_sparse_model():
    model = upcycle(make_llava(), shared_expert=True)
    assert under(set(set_trainable(model, "router", [0, 2])), ".router.", ".shared_expert_gate.")
    assert under(set(set_trainable(model, "experts", [0, 2])), ".experts.", ".shared_expert.")
    with pytest.raises(ValueError, match="has no parameters in 'router'"):
        set_trainable(make_llava(), "router", [0, 2])


def test_batches_of_similar_length_come_in_the_same_order_after_a_restart():
    lengths = [10, 50, 11, 49, 12, 48, 13, 47] * 4
    sampler = EpochLengthSampler(2, lengths, seed=3)
    first, again = list(sampler), EpochLengthSampler(2, lengths, seed=3)
    assert list(again) == first and sorted(first) == list(range(32))
    again.set_epoch(1)
    assert list(again) != first
    spread = [abs(lengths[a] - lengths[b]) for a, b in zip(first[::2], first[1::2], strict=True)]
    assert sum(gap > 5 for gap in spread) <= 3  # of 16 batches: where one length meets the other, and the longest comes first


def test_data_that_stages_share_are_read_and_checked_once(workspace, monkeypatch):
    checked = []
    check = ConversationDataset.check
    monkeypatch.setattr(ConversationDataset, "check", lambda dataset: checked.append(dataset) or check(dataset))
    describe(make_recipe(workspace, stages=(1, 2, 3)))
    assert len(checked) == 1


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
