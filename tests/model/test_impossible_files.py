"""Files of which no model, recipe or answer can be made: one sentence that names file and field, from the verbs that read them."""

import json
import os

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from evomoe import cli
from evomoe.evaluation.foreign_answers import text_of
from evomoe.model.loading import load_model, load_processor
from evomoe.model.possible import check_sizes
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.router_options import DTROptions
from evomoe.recipe.row_options import read_options
from evomoe.support.parse_json import read_json
from evomoe.training.checked_run import check_run

SMALL = ["--num-experts", "2", "--router", "linear"]


def changed(folder, **values) -> None:
    held = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(held | values))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"text_config": None}, "text_config None, which must be a configuration"),
        ({"vision_config": None}, "vision_config None, which must be a configuration"),
        ({"vision_feature_layer": 99}, "vision_feature_layer 99; its vision tower has 2 layers"),
        ({"vision_feature_layer": [-1, -4]}, "vision_feature_layer -4"),
    ],
)
def test_configurations(workspace, capsys, values, told):
    changed(workspace / "model", **values)
    assert cli.main(["upcycle", str(workspace / "model"), str(workspace / "out"), *SMALL]) == 1
    error = capsys.readouterr().err
    assert told in error and str(workspace / "model") in error and not (workspace / "out").exists()


@pytest.mark.parametrize(("field", "value"), [("rope_theta", 0), ("rope_theta", -1e4), ("rms_norm_eps", -1)])
def test_numbers_that_make_nothing_but_nan(workspace, capsys, field, value):
    text = json.loads((workspace / "model" / "config.json").read_text())["text_config"]
    changed(workspace / "model", text_config=text | {field: value})
    assert cli.main(["upcycle", str(workspace / "model"), str(workspace / "out"), *SMALL]) == 1
    assert f"text_config.{field} {value}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", {"height": 10**6, "width": 10**6}),
        ("rescale_factor", 0.0),
        ("image_std", [0.0, 0.0, 0.0]),
        ("size", {"height": 0, "width": 8}),
    ],
)
def test_processors(workspace, field, value):
    file = workspace / "model" / "processor_config.json"
    held = json.loads(file.read_text())
    held["image_processor"][field] = value
    file.write_text(json.dumps(held))
    with pytest.raises(ValueError, match=f"its processor has {field}"):
        load_processor(workspace / "model")


@pytest.mark.parametrize("kind", [torch.int8, torch.bool, torch.complex64])
def test_weights_that_are_no_floating_point_numbers(workspace, kind):
    file = workspace / "model" / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("up_proj.weight"))
    save_file(tensors | {name: tensors[name].to(kind)}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=f"{name} has values of type"):
        load_model(workspace / "model")


def test_the_pointer_of_a_large_file(workspace):
    (workspace / "model" / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        load_model(workspace / "model")


@pytest.mark.parametrize("values", [{"eos_token_id": "</s>"}, {"eos_token_id": [2, "x"]}, {"suppress_tokens": ["a"]}])
def test_generation_settings(workspace, values):
    (workspace / "model" / "generation_config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=f"generation_config.json has {next(iter(values))}"):
        load_model(workspace / "model")


def test_a_pipe_or_device_is_no_file_that_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    for read, name in (
        (Recipe.load, "pipe.yaml"),
        (Recipe.load, "zero.json"),
        (read_json, "pipe.jsonl"),
        (text_of, "pipe.jsonl"),
    ):
        with pytest.raises(ValueError, match=f"{name} is not a regular file"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json", "model.safetensors"]
)
def test_a_pipe_in_a_model_s_folder_is_refused_by_every_verb(workspace, capsys, file):
    model = workspace / "model"
    (model / file).unlink()
    os.mkfifo(model / file)
    for arguments in (
        ["params", str(model), *SMALL],
        ["chat", str(model), "--prompt", "?"],
        ["upcycle", str(model), str(model / "out")],
    ):
        assert cli.main(arguments) == 1
        assert f"{file} is not a regular file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "verb", [["upcycle"], ["export"], ["eval", "--benchmarks", "mini-pope", "--output"], ["demo", "--output"]]
)
@pytest.mark.parametrize("within", ["", "/x/y"])
def test_nothing_is_written_into_a_file(workspace, capsys, verb, within):
    name, *options = verb
    file = str(workspace / "data.json") + within
    arguments = [*options, file] if name == "demo" else [str(workspace / "model"), *options, file]
    before = (workspace / "data.json").read_bytes()
    assert cli.main([name, *arguments]) == 1
    told = capsys.readouterr().err
    assert "data.json is a file" in told or "data.json exists already" in told
    assert (workspace / "data.json").read_bytes() == before


@pytest.mark.parametrize("text", ["[]", '"words"'])
def test_a_configuration_must_hold_fields(workspace, text):
    (workspace / "model" / "config.json").write_text(text)
    told = "its config.json holds a .*, and must hold fields by name"
    if transformers.__version__.startswith("5.16."):  # which fails by itself before we can look
        told = "its config.json cannot be read: TypeError"
    with pytest.raises(ValueError, match=told):
        load_model(workspace / "model")


def test_a_run_s_folder_within_a_file_is_refused(workspace):
    recipe = Recipe(str(workspace / "model"), str(workspace / "data.json"), str(workspace / "data.json" / "x" / "y"), stages=(1,))
    with pytest.raises(ValueError, match="output: .*data.json is a file; name a folder"):
        check_run(recipe)


@pytest.mark.parametrize(
    ("text", "told"),
    [("seed: &a [*a]", "an alias"), ("stages: [&a [1], *a]", "an alias"), ("trainer: &a {x: *a}", "an alias")],
)
def test_yaml_that_unfolds(tmp_path, text, told):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"r.yaml, line 1, .*{told}"):
        Recipe.load(tmp_path / "r.yaml")


def test_recipes_that_are_none(tmp_path):
    (tmp_path / "r.json").write_text("[]")
    with pytest.raises(ValueError, match="r.json is not a recipe of this version: it must have options by name"):
        Recipe.load(tmp_path / "r.json")
    with pytest.raises(ValueError, match="there is no recipe.json in this folder"):
        Recipe.load(tmp_path)


@pytest.mark.parametrize("experts", [5, ["a"]])
def test_evolved_experts_of_no_name(workspace, experts):
    recipe = Recipe(str(workspace / "model"), str(workspace / "data.json"), str(workspace / "run"), stages=(3,))
    with pytest.raises(ValueError, match="name the file that Stage II wrote, not"):
        check_run(recipe.but(init_options={"experts": experts}))


@pytest.mark.parametrize(
    "trainer",
    [
        {"lr_scheduler_kwargs": {"a": 1}},
        {"lr_scheduler_kwargs": {"num_cycles": "x"}},
        {"lr_scheduler_kwargs": {"num_cycles": float("nan")}},
        {"lr_scheduler_kwargs": {"power": "x"}, "lr_scheduler_type": "polynomial"},
        {"lr_scheduler_kwargs": {"min_lr": "x"}, "lr_scheduler_type": "cosine_with_min_lr"},
        {"log_level": "loud"},
        {"optim_args": "foo"},
        {"optim_args": "foo=1"},
        {"optim_target_modules": "mlp"},
        {"optim": "nothing"},
        {"gradient_checkpointing_kwargs": {"foo": 1}},
        {"gradient_checkpointing_kwargs": "foo"},
        {"gradient_checkpointing_kwargs": {"use_reentrant": "maybe"}},
        {"gradient_checkpointing_kwargs": {"context_fn": "x"}},
        {"accelerator_config": {"foo": 1}},
        {"accelerator_config": {"split_batches": True}},
        {"accelerator_config": {"gradient_accumulation_kwargs": {"foo": 4}}},
        {"accelerator_config": {"even_batches": 7}},
        {"accelerator_config": "no_file.json"},
        {"fsdp_config": {"min_num_params": 1}},
        {"fsdp": "foo"},
        {"ddp_backend": "foo"},
        {"save_strategy": "best"},
        {"torch_compile": True, "torch_compile_backend": "foo"},
        {"torch_compile": True, "torch_compile_mode": "foo"},
        {"dataloader_persistent_workers": True},
    ],
    ids=str,
)
def test_trainer_s_values_that_would_fail_later(workspace, trainer):
    recipe = Recipe(str(workspace / "model"), str(workspace / "data.json"), str(workspace / "run"), stages=(1,), trainer=trainer)
    with pytest.raises(ValueError, match="^trainer: TrainingArguments of stage 1: ") as refused:
        check_run(recipe)
    assert any(name in str(refused.value) for name in (*trainer, *map(str, trainer.values()))) and len(str(refused.value)) < 500


@pytest.mark.parametrize(
    "trainer",
    [
        {"ddp_backend": "gloo"},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
        {"accelerator_config": {"non_blocking": True}},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 1000}},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-6}},
        {"optim": "adamw_torch_fused"},
    ],
    ids=str,
)
def test_trainer_s_values_that_are_good(workspace, trainer):
    recipe = Recipe(str(workspace / "model"), str(workspace / "data.json"), str(workspace / "run"), stages=(1,), trainer=trainer)
    assert check_run(recipe).recipe.trainer == trainer


def test_a_configuration_of_another_model_is_refused_before_it_fills_the_memory(workspace):
    text = json.loads((workspace / "model" / "config.json").read_text())["text_config"]
    changed(workspace / "model", text_config=text | {"intermediate_size": 50_000_000})
    with pytest.raises(ValueError, match=r"describes a model of \d+.\d B parameters, and its weights have 0.000 GB"):
        load_model(workspace / "model")


@pytest.mark.parametrize("cap", [1e-300, -1.0])
def test_a_cap_under_which_all_logits_are_the_same(cap):
    with pytest.raises(ValueError, match="at least 0.001; 0 bounds no logits"):
        read_options(DTROptions, {"cap": cap}, "router 'dtr'").check(4)


@pytest.mark.parametrize("values", [{"eos_token_id": 128}, {"eos_token_id": [2, 5000]}, {"pad_token_id": 128}])
def test_tokens_at_which_no_answer_could_end_are_refused(workspace, values):
    (workspace / "model" / "generation_config.json").write_text(json.dumps(values))
    message = f"generation_config.json has {next(iter(values))} .*rows up to 127"
    with pytest.raises(ValueError, match=message):
        load_model(workspace / "model")
    (workspace / "model" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=message):
        check_run(Recipe(str(workspace / "model"), str(workspace / "data.json"), str(workspace / "run"), stages=(1,)))


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("text_config", "hidden_act"), "gulu", "text_config.hidden_act 'gulu'"),
        (("vision_config", "hidden_act"), "gulu", "vision_config.hidden_act 'gulu'"),
        (("projector_hidden_act",), "gulu", "projector_hidden_act 'gulu'"),
        (("dtype",), "float17", "dtype 'float17', which must be the name of a torch dtype"),
        (("dtype",), 3, "dtype 3, which must be the name of a torch dtype"),
        (("text_config", "dtype"), "flort", "text_config.dtype 'flort'"),
        (("text_config",), [], "text_config [], which must be a configuration of its own"),
        (("vision_config",), 3, "vision_config 3, which must be a configuration of its own"),
        (("quantization_config",), "int8", "quantization_config 'int8', which must be a configuration of its own"),
        (("quantization_config",), {"quant_method": "zzz"}, "quantization_config.quant_method 'zzz'"),
        (("text_config", "hidden_size"), -32, "text_config.hidden_size -32, which must be at least 1"),
        (("text_config", "max_position_embeddings"), 0, "text_config.max_position_embeddings 0, which must be at least 1"),
        (("text_config", "intermediate_size"), -32, "text_config.intermediate_size -32, which must be at least 0"),
        (("text_config", "num_hidden_layers"), "four", "text_config.num_hidden_layers 'four', which must be a whole number"),
        (("text_config", "hidden_size"), 32.5, "text_config.hidden_size 32.5"),
        (("text_config", "rms_norm_eps"), "small", "text_config.rms_norm_eps 'small'"),
        (("text_config", "rope_parameters"), {"rope_type": "zigzag", "rope_theta": 1e4}, "rope_parameters.rope_type 'zigzag'"),
        (("text_config", "rope_scaling"), {"type": "zigzag", "factor": 2.0}, "text_config.rope_scaling.type 'zigzag'"),
        (
            ("text_config", "rope_parameters"),
            {"rope_type": "linear", "rope_theta": 1e4, "factor": -3},
            "factor -3, which must be",
        ),
        (("text_config", "pad_token_id"), 9999, "text_config.pad_token_id 9999, too large for its vocab_size 128"),
        (("vision_config", "patch_size"), 17, "vision_config.patch_size 17, too large for its image_size 16"),
        (("image_token_id",), "<image>", "image_token_id '<image>', which must be a token's number"),
        (("model_type",), ["llava"], "model_type ['llava'], which must be the name of a family"),
    ],
)
def test_a_field_that_cannot_be_is_named_by_every_verb(workspace, capsys, path, value, told):
    model = workspace / "model"
    held = json.loads((model / "config.json").read_text())
    inner = held
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    (model / "config.json").write_text(json.dumps(held))
    runs = ["--data", str(workspace / "data.json"), "--image-root", str(workspace / "images"), "--output", str(workspace / "run")]
    for arguments in (
        ["train", "--model", str(model), *runs],
        ["upcycle", str(model), str(workspace / "out"), *SMALL],
        ["params", str(model), *SMALL],
        ["eval", str(model), "--benchmarks", "mini-pope"],
        ["chat", str(model), "--prompt", "what ?"],
        ["export", str(model), str(workspace / "out")],
    ):
        assert cli.main(arguments) == 1
        error = capsys.readouterr().err
        assert told in error and str(model) in error and len(error) < 700, arguments[0]
    assert not (workspace / "out").exists() and not (workspace / "run").exists()


def test_quantized_weights_are_named(workspace, capsys):
    changed(workspace / "model", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert cli.main(["params", str(workspace / "model"), *SMALL]) == 1
    assert "has quantized weights (bitsandbytes), of which no experts can be made or trained" in capsys.readouterr().err


def test_a_tower_is_no_language_model(workspace, capsys):
    held = json.loads((workspace / "model" / "config.json").read_text())
    changed(workspace / "model", text_config=held["text_config"] | {"model_type": "clip_vision_model"})
    assert cli.main(["params", str(workspace / "model"), *SMALL]) == 1
    assert "its text_config is no language model's" in capsys.readouterr().err


@pytest.mark.parametrize("experts", ["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"])
@pytest.mark.parametrize("taken", [0, -1, 9, "two", 1.5])
def test_a_token_takes_some_of_the_experts_that_there_are(experts, taken):
    check_sizes({experts: 8, "num_experts_per_tok": 8}, "folder")
    check_sizes({experts: 0, "num_experts_per_tok": 0}, "folder")  # a dense model of a family that may be sparse
    with pytest.raises(ValueError, match="^folder: its config.json has text_config.num_experts_per_tok .* between 1 and .*, 8"):
        check_sizes({"text_config": {experts: 8, "num_experts_per_tok": taken}}, "folder")


def test_seeds_that_are_none(workspace, capsys):
    model, out = str(workspace / "model"), str(workspace / "out")
    for arguments in (["upcycle", model, out], ["attach", model, out], ["compose", out, "--text", model, "--vision", model]):
        assert cli.main([*arguments, "--seed", "-1"]) == 1
        assert "--seed: -1 must be a whole number from 0 to" in capsys.readouterr().err
