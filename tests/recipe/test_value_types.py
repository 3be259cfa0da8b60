"""Values of a wrong type are refused by name, in whatever options they stand."""

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
from tiny import make_llava

from evomoe import train, upcycle
from evomoe.conversion.attaching import attach
from evomoe.model.structure import UnsupportedModelError
from evomoe.recipe.named_recipes import RECIPES
from evomoe.recipe.options import EvolutionOptions, MoEOptions, StageOptions
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.value_types import unsuited
from evomoe.support.errors import OptionError

RECIPE = RECIPES["evomoe"].but(model="m", data="d", output="o")
PARTS = {"": Recipe, "moe": MoEOptions, "evolution": EvolutionOptions, "stage2": StageOptions}


class Strange:
    """Of no type that an option has."""

    def __repr__(self) -> str:
        return "Strange"


def every_option() -> list[tuple[str, str]]:
    return [(part, field.name) for part, kind in PARTS.items() for field in fields(kind)]


@pytest.mark.parametrize(("part", "name"), every_option())
def test_a_value_of_another_type_names_the_option(part, name):
    with pytest.raises(OptionError, match=r"Strange must be ") as caught:
        if part == "stage2":
            RECIPE.but(stage2=StageOptions(**{name: Strange()}))
        elif part == "evolution":
            RECIPE.but(evolution=EvolutionOptions(**{name: Strange()}))
        else:
            RECIPE.but(**{name: Strange()})
    assert caught.value.option == (f"{part}.{name}" if part in ("evolution", "stage2") else name)


@pytest.mark.parametrize(("part", "name"), every_option())
def test_no_option_is_of_a_type_that_is_not_looked_at(part, name):
    assert unsuited(get_type_hints(PARTS[part])[name], Strange())


@pytest.mark.parametrize(
    ("hint", "good", "bad", "wanted"),
    [
        (int, 3, True, "a whole number"),
        (float, 3, "3", "a number"),
        (str | None, None, 3, "text or nothing"),
        (tuple[int, ...], [1, 2], (1, "2"), "a list, and each entry a whole number"),
        (tuple[tuple[float, float], ...], ((0.1, 1),), ("0.1", "1"), "a list, and each entry a list"),
        (tuple[tuple[float, float], ...], ((0.1, 1),), ((0.1, 0.2, 0.3),), "a list, and each entry a list of 2"),
        (float, 0, True, "a number"),
        (str, "", math.nan, "text"),
        (MoEOptions, MoEOptions(), {}, "of class MoEOptions"),
    ],
)
def test_types(hint, good, bad, wanted):
    assert (unsuited(hint, good), unsuited(hint, bad)) == ("", wanted)


def test_what_people_hand_over_becomes_what_json_holds():
    given = RECIPE.but(
        model=Path("m"),
        stages=[np.int64(2), 3],
        num_experts=np.int64(4),
        stop_fraction=np.float32(0.5),
        beta_ranges=[[0.9, 0.99]] * 3,
    )
    assert given == RECIPE.but(stages=(2, 3), stop_fraction=0.5, beta_ranges=((0.9, 0.99),) * 3)
    assert given.differences(RECIPE.but(stages=(2, 3), stop_fraction=0.5, beta_ranges=((0.9, 0.99),) * 3)) == []
    with pytest.raises(OptionError, match="^dtype: nan must be one of"):
        RECIPE.but(dtype=math.nan)


def test_an_option_of_a_stage_is_told_where_it_belongs():
    with pytest.raises(OptionError, match=r"^steps: it belongs to a stage: recipe.but\(stage3={'steps': ...}\)"):
        RECIPE.but(steps=3)


def test_a_recipe_names_its_file_when_a_value_is_wrong_and_keeps_what_it_did_before(tmp_path):
    RECIPE.save(path := tmp_path / "recipe.json")
    values = json.loads(path.read_text())
    del values["moe"]["router_gradient"]
    path.write_text(json.dumps(values))
    assert Recipe.load(path).moe.router_gradient == "chosen"
    path.write_text(json.dumps(values | {"seed": "one"}))
    with pytest.raises(OptionError, match=f"^seed: 'one' must be a whole number. It stands in {path}."):
        Recipe.load(path)


def test_a_choice_is_told_with_what_there_is():
    with pytest.raises(OptionError, match="^dtype: there is no 'float8'; choose from float32, bfloat16, auto.$"):
        RECIPE.but(dtype="float8")


def test_an_option_that_is_not_there_is_told_with_the_one_that_was_meant():
    model = make_llava()
    with pytest.raises(OptionError, match="^num_expert: A mixture has no such option. Did you mean `num_experts`?"):
        upcycle(model, num_expert=4)
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    with pytest.raises(OptionError, match="^lr: A recipe has no such option. It has "):
        RECIPE.but(lr=1)


@pytest.mark.parametrize("convert", [upcycle, attach])
def test_what_is_no_model_is_told_how_to_become_one(convert):
    with pytest.raises(UnsupportedModelError, match="^'folder' is not a model of transformers; `AutoModelForImageTextToText"):
        convert("folder")


def test_a_recipe_is_read_from_its_file_or_its_run_s_folder(tmp_path):
    RECIPE.save(tmp_path / "recipe.json")
    assert Recipe.load(tmp_path) == Recipe.load(tmp_path / "recipe.json") == RECIPE
    with pytest.raises(OptionError, match="^recipe: 'recipe.json' must be a Recipe; `Recipe.load` reads one"):
        train("recipe.json")
