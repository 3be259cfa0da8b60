"""Files of which no model, recipe or answer can be made: one sentence that names file and field, from the verbs that read them."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import make_recipe

from evomoe import cli
from evomoe.evaluation.foreign_answers import text_of
from evomoe.model.loading import load_model, load_processor
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
    [{"lr_scheduler_kwargs": {"a": 1}}, {"log_level": "loud"}, {"optim_args": "foo"}, {"optim": "nothing"}],
    ids=lambda trainer: next(iter(trainer)),
)
def test_trainer_s_values_that_would_fail_later(workspace, trainer):
    recipe = Recipe(str(workspace / "model"), str(workspace / "data.json"), str(workspace / "run"), stages=(1,), trainer=trainer)
    with pytest.raises(ValueError, match="^trainer: TrainingArguments of stage 1"):
        check_run(recipe)


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
        check_run(make_recipe(workspace))
