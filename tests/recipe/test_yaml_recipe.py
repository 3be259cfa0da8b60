"""Recipes in YAML: written with every option and its meaning, read with what they leave out at its default."""

import dataclasses
import subprocess
import sys

import pytest

from evomoe.recipe.commented_yaml import commented_yaml, meanings
from evomoe.recipe.named_recipes import RECIPES
from evomoe.recipe.options import EvolutionOptions, MoEOptions, StageOptions
from evomoe.recipe.recipe import Recipe
from evomoe.support.errors import OptionError

FULL = RECIPES["evomoe"].but(
    model="m: x", data="d #1.json", output="runs/ünï", image_root="yes", stages=(2, 3), init_options={"std": 1e-7, "on": "off"},
    router_options={"rank": 3}, trainer={"bf16": True, "optim": "adamw_torch", "adam_epsilon": 1e-9}, packing=True, moe_layers="0,2",
    stage2=StageOptions(steps=7, train="ffn", learning_rate=3e-6, data="1e5", trainer={"save_steps": 5}),
)  # fmt: skip


@pytest.mark.parametrize("recipe", [*RECIPES.values(), FULL], ids=[*RECIPES, "all kinds of values"])
def test_what_is_written_is_read_again(tmp_path, recipe):
    (tmp_path / "r.yaml").write_text(commented_yaml(recipe), encoding="utf-8")
    assert Recipe.load(tmp_path / "r.yaml") == recipe


@pytest.mark.parametrize("options", [Recipe, MoEOptions, EvolutionOptions, StageOptions])
def test_every_option_has_its_meaning(options):
    assert {option.name for option in dataclasses.fields(options)} <= meanings(options).keys() | {
        "moe", "evolution", *(f"stage{number}" for number in range(4)),
    }  # fmt: skip


def test_what_is_left_out_keeps_its_default(tmp_path):
    (tmp_path / "r.yml").write_text(
        "model: m\nstage2:\n  steps: 9\n  learning_rate: 1e-3\nmoe: {num_experts_per_tok: 2}\nevolution:\n"
    )
    expected = Recipe("m", "", "").but(num_experts_per_tok=2)
    expected = expected.but(stage2=dataclasses.replace(expected.stage2, steps=9, learning_rate=1e-3))
    assert Recipe.load(tmp_path / "r.yml") == expected
    (tmp_path / "empty.yaml").write_text("")
    assert Recipe.load(tmp_path / "empty.yaml") == Recipe("", "", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle: m", r"A recipe has no such option. Did you mean `model`\? It stands in .*r.yaml"),
        ("stage2: {step: 3}", r"Did you mean `steps`\?"),
        ("stage2: 3", "is not a recipe of this version: stage2 must have options by name"),
        ("stage2: false", "is not a recipe of this version: stage2 must have options by name"),
        ("[]", "is not a recipe of this version: it must have options by name"),
        ("1: 2", "is not a recipe of this version: it must have options by name"),
        ("stage2: {1: 2}", "is not a recipe of this version: stage2 must have options by name"),
        ("- 1", "is not a recipe of this version: it must have options by name"),
        ("seed: x", "seed"),
        ("model: a\nseed: 1\nmodel: b", r"r.yaml, line 3, column 1: broken YAML: 'model' stands there twice"),
        ("model: [", r"r.yaml, line 1, column \d+: broken YAML"),
        ("a: " + "[" * 5000, "broken YAML"),
        ("model: !!python/object/apply:os.getcwd []", "broken YAML: could not determine a constructor"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, text, message):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises((ValueError, OptionError), match=message):
        Recipe.load(tmp_path / "r.yaml")


def test_a_run_starts_from_a_recipe_in_yaml_and_flags_come_first(workspace):
    evomoe = [sys.executable, "-m", "evomoe.cli"]
    printed = subprocess.run([*evomoe, "recipe"], capture_output=True, text=True, check=True).stdout
    mine = workspace / "mine.yaml"
    mine.write_text(printed.replace("\nmodel:\n", f"\nmodel: {workspace / 'model'}\n").replace("\nseed: 0\n", "\nseed: 5\n"))
    asked = [
        *evomoe,
        "train",
        "--recipe",
        mine,
        "--data",
        workspace / "data.json",
        "--image-root",
        workspace / "images",
        "--dry-run",
    ]
    refused = subprocess.run(asked, capture_output=True, text=True)
    assert refused.returncode == 2 and "--output" in refused.stderr + refused.stdout
    told = subprocess.run([*asked, "--output", workspace / "run"], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr


@pytest.mark.parametrize("text", ["010", "1:30", "0x10", "0b1", "1_000", "0o7", "2026-11-30", "1:30.5"])
def test_what_only_yaml_1_1_takes_for_a_number_is_none(tmp_path, text):
    (tmp_path / "r.yaml").write_text(f"model: m\nstage2:\n  steps: {text}\n")
    with pytest.raises(OptionError, match=r"stage2.steps"):
        Recipe.load(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text(f"model: {text}\n")
    assert Recipe.load(tmp_path / "r.yaml").model == text


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), (".5", 0.5), ("2.", 2.0), ("+1.5E+0", 1.5), ("3", 3.0), ("2.5e-05", 2.5e-5)]
)
def test_numbers_are_what_json_takes_for_numbers_and_a_little_more(tmp_path, text, value):
    (tmp_path / "r.yaml").write_text(f"stage2:\n  learning_rate: {text}\n")
    assert Recipe.load(tmp_path / "r.yaml").stage2.learning_rate == value
