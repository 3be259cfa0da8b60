"""A run as data: recipes, options given as name=value, and files that are whole or not there."""

import json
import math
import os
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from evomoe.model.routers import ROUTERS
from evomoe.recipe.named_recipes import EVOMOE, RECIPES
from evomoe.recipe.named_values import parse_named_values
from evomoe.recipe.options import STAGES, EvolutionOptions, MoEOptions, StageOptions
from evomoe.recipe.recipe import Recipe
from evomoe.support import files
from evomoe.support.errors import OptionError
from evomoe.support.files import new_folder, write_tensors, write_text

FULL = Recipe(
    model="m", data="d", output="o", image_root="images", stages=(1, 2, 3), moe_layers="0,2", init_options={"std": [1, 2]},
    moe=MoEOptions(
        num_experts=3, num_experts_per_tok=2, router="linear", router_options={"a": {"b": [1, None]}}, gate="probability",
        shared_expert=True, expert_dropout=0.25, aux_losses={"balance": 0.5, "local": 1.0}, aux_reduction="sum",
    ),
    evolution=EvolutionOptions("ema", ((0.5, 0.6), (0.1, 0.1)), stop_fraction=0.75, beta_scope="layer", seed=7, offload=True),
    stage2=StageOptions(learning_rate=1e-4, epochs=0.5, steps=3, batch_size=1, accumulation=9, data="other", train="ffn",
                        trainer={"bf16": True, "betas": [0.9, 0.95]}),
    max_length=99, max_pixels=10, on_bad_record="skip", dtype="bfloat16", workers=2, seed=5, trust_remote_code=True,
    allow_collapsed_experts=True, trainer={"logging_steps": 3},
)  # fmt: skip


@pytest.mark.parametrize("recipe", [FULL, *RECIPES.values()], ids=["full", *RECIPES])
def test_json_and_back_is_the_identity(recipe, tmp_path):
    recipe.save(tmp_path / "recipe.json")
    loaded = Recipe.load(tmp_path / "recipe.json")
    assert loaded == recipe and loaded.differences(recipe) == []
    assert isinstance(loaded.stages, tuple) and all(isinstance(low_high, tuple) for low_high in loaded.evolution.beta_ranges)


def test_lists_inside_a_user_s_own_options_stay_lists(tmp_path):
    FULL.save(tmp_path / "recipe.json")
    loaded = Recipe.load(tmp_path / "recipe.json")
    assert loaded.init_options == {"std": [1, 2]} and loaded.stage2.trainer["betas"] == [0.9, 0.95]
    assert loaded.moe.router_options == {"a": {"b": [1, None]}}


def test_but_reaches_fields_of_the_recipe_of_the_mixture_and_of_the_evolution():
    changed = EVOMOE.but(router="linear", num_experts=3, beta_ranges=((0.5, 0.5),) * 2, rule="ema", max_length=7)
    assert (changed.moe.router, changed.moe.num_experts, changed.max_length) == ("linear", 3, 7)
    assert changed.evolution == EvolutionOptions("ema", ((0.5, 0.5),) * 2)
    assert changed.stage3 == EVOMOE.stage3
    assert EVOMOE.but(gate="probability").but(router="linear").moe.gate == "probability"  # what is not named stays
    assert EVOMOE.moe.router == "dtr" and EVOMOE.max_length == 2048  # the original is what it was


def test_but_takes_a_field_that_both_have_to_be_the_recipe_s():
    assert EVOMOE.but(seed=3).seed == 3 and EVOMOE.but(seed=3).evolution.seed == 0


def test_but_can_replace_a_part_and_change_a_field_of_the_new_one():
    changed = EVOMOE.but(moe=MoEOptions(gate="probability"), router="linear")
    assert (changed.moe.gate, changed.moe.router) == ("probability", "linear")


def test_but_does_not_know_other_names():
    with pytest.raises(OptionError, match="^rooter: A recipe has no such option. Did you mean `router`?"):
        EVOMOE.but(rooter="linear")


def test_differences_name_the_fields_and_both_values():
    changed = EVOMOE.but(seed=1, router="linear")
    assert sorted(changed.differences(EVOMOE)) == ["router: 'dtr' -> 'linear'", "seed: 0 -> 1"]
    slower = EVOMOE.but(stage2=replace(EVOMOE.stage2, steps=7))
    assert slower.differences(EVOMOE) == [f"stage2.steps: {EVOMOE.stage2.steps} -> 7"]


def test_stages_and_placement_are_found_by_number_and_name():
    assert [FULL.stage(n) for n in range(4)] == [FULL.stage0, FULL.stage1, FULL.stage2, FULL.stage3]
    assert FULL.placement() == [0, 2] and EVOMOE.placement() == "alternating"


WRONG = {
    "no stage": ({"stages": ()}, "stages: .* must be some of"),
    "unknown stage": ({"stages": (1, 4)}, r"stages: \[1, 4\] must be some of \[0, 1, 2, 3\]"),
    "stages out of order": ({"stages": (2, 1)}, "each once, in order"),
    "stage twice": ({"stages": (1, 1)}, "each once, in order"),
    "a stage of no use": (
        {"num_experts": 5, "expert_init": "partition"},
        "^expert_init: 'partition' takes no experts from Stage II; leave it out: `stages=1 3`.",
    ),
    "too few ranges": ({"num_experts": 5}, "^evolution.beta_ranges: it has 3 entries; 5 experts need 4"),
    "evolved without Stage II": ({"stages": (1, 3)}, "^expert_init: 'evolved' needs Stage II .* `init_options=experts=FILE`"),
    "on_bad_record": ({"on_bad_record": "ignore"}, "on_bad_record: there is no 'ignore'"),
    "max_length": ({"max_length": 0}, "^max_length: 0 must be a whole number from 1 to"),
    "max_pixels": ({"max_pixels": 0}, "^max_pixels: 0 must"),
    "workers": ({"workers": -2}, "^workers: -2 must be a whole number from 0 to"),
    "negative seed": ({"seed": -1}, "^seed: -1 must be a whole number from 0 to 4294967295"),
    "large seed": ({"seed": 2**32}, "^seed: 4294967296 must"),
    "seed of the evolution": ({"evolution": EvolutionOptions(seed=-1)}, "^evolution.seed: -1 must"),
    "one expert": ({"num_experts": 1, "beta_ranges": ()}, "^num_experts: 1 is too few"),
    "top-k": ({"num_experts_per_tok": 5}, r"^num_experts_per_tok: 5 \(top-k\)"),
    "no slot": ({"num_experts_per_tok": 0}, r"^num_experts_per_tok: 0 \(top-k\)"),
    "dropout": ({"expert_dropout": 1.0}, "^expert_dropout: 1.0 must"),
    "negative dropout": ({"expert_dropout": -0.1}, "^expert_dropout: -0.1 must"),
    "beta above 1": ({"beta_ranges": ((0.9, 1.1),) * 3}, r"^evolution.beta_ranges: \[0.9, 1.1\] must satisfy"),
    "beta below 0": ({"beta_ranges": ((-0.1, 0.5),) * 3}, "^evolution.beta_ranges: "),
    "beta that is no number": ({"beta_ranges": ((0.9, math.nan),) * 3}, "^evolution.beta_ranges: "),
    "range upside down": ({"beta_ranges": ((0.9, 0.8),) * 3}, "0 <= low <= high <= 1"),
    "stop_fraction": ({"stop_fraction": 1.5}, "^evolution.stop_fraction: 1.5 must"),
    "negative stop_fraction": ({"stop_fraction": -0.5}, "^evolution.stop_fraction: -0.5 must"),
    "stop_fraction that is no number": ({"stop_fraction": math.nan}, "^evolution.stop_fraction: nan must"),
    "dropout that is no number": ({"expert_dropout": math.nan}, "^expert_dropout: nan must"),
    "beta_scope": ({"beta_scope": "epoch"}, "^evolution.beta_scope: there is no 'epoch'"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_work_is_refused(changes, message):
    with pytest.raises(OptionError, match=message):
        EVOMOE.but(**changes)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("field", ["learning_rate", "epochs", "batch_size", "accumulation"])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_stage_options_must_be_positive(stage, field, value):
    with pytest.raises(OptionError, match=f"^stage{stage}.{field}: {value} must be a (positive|whole) number"):
        EVOMOE.but(**{f"stage{stage}": StageOptions(**{field: value})})


@pytest.mark.parametrize(("field", "value"), [("steps", -1), ("steps", 2.5), ("batch_size", 2.5), ("accumulation", "2")])
def test_counts_of_a_stage_must_be_whole_numbers(field, value):
    with pytest.raises(ValueError, match=f"^stage2.{field}: {value!r} must be a whole number"):
        EVOMOE.but(stage2=StageOptions(**{field: value}))


@pytest.mark.parametrize(
    "changes",
    [
        {"stages": (1, 3), "expert_init": "replicate"},
        {"stages": (3,), "init_options": {"experts": "evolved_experts.safetensors"}},
        {"gate": "normalised", "num_experts_per_tok": 2},
        {"gate": "normalised", "stage3": replace(EVOMOE.stage3, train="router+experts")},
        {"gate": "normalised", "stages": (1, 2)},
        {"stages": (1,), "num_experts": 7},
        {"stages": (0, 1, 2, 3), "stop_fraction": 0.0, "beta_ranges": ((0.0, 1.0),) * 3},
    ],
)
def test_what_can_work_is_allowed(changes):
    EVOMOE.but(**changes)


def test_the_paper_s_settings_are_the_defaults():
    moe, evolution = EVOMOE.moe, EVOMOE.evolution
    assert (moe.num_experts, moe.num_experts_per_tok, moe.router, moe.aux_losses) == (
        4,
        1,
        "dtr",
        {"balance": 0.001, "z": 0.0001},
    )  # z is ours
    assert EVOMOE.stages == (1, 2, 3) and EVOMOE.moe_layers == "alternating" and EVOMOE.max_length == 2048
    assert evolution.beta_ranges == ((0.9, 0.99), (0.8, 0.89), (0.7, 0.79))
    for stage, batch in ((1, 256), (2, 64), (3, 64)):
        options = EVOMOE.stage(stage)
        assert options.batch_size * options.accumulation == batch and options.learning_rate == 2e-5 and options.epochs == 1
    assert [EVOMOE.stage(n).train for n in range(4)] == ["projector", "text+projector", "ffn", "router"]


def test_every_named_recipe_names_rows_that_exist():
    from evomoe.conversion.expert_init import INITS
    from evomoe.model.aux_losses import AUX_LOSSES
    from evomoe.model.routing import GATES
    from evomoe.training.evolution import RULES

    for name, recipe in RECIPES.items():
        assert recipe.model == recipe.data == recipe.output == "", name
        assert recipe.moe.router in ROUTERS and recipe.moe.gate in GATES and recipe.expert_init in INITS, name
        assert set(recipe.moe.aux_losses) <= set(AUX_LOSSES) and recipe.evolution.rule in RULES, name


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
names = st.text(min_size=1).filter(lambda name: "=" not in name)


@given(st.dictionaries(names, json_values, max_size=4))
def test_named_values_survive_the_command_line(values):
    assert parse_named_values([f"{name}={json.dumps(value)}" for name, value in values.items()]) == values


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("rank=8", {"rank": 8}), ("inner=dtr", {"inner": "dtr"}), ("on=true", {"on": True}), ("off=False", {"off": "False"}),
        ("path=a=b", {"path": "a=b"}), ("empty=", {"empty": ""}), ("std=1e-2", {"std": 0.01}), ("x=[1, 2]", {"x": [1, 2]}),
    ],
)  # fmt: skip
def test_a_value_that_is_no_json_stays_text(item, expected):
    assert parse_named_values([item]) == expected


@pytest.mark.parametrize("item", ["rank", "=8", ""])
def test_what_is_not_name_and_value_is_refused(item):
    with pytest.raises(ValueError, match="is not of the form name=value"):
        parse_named_values([item])


def test_a_name_that_is_given_twice_is_refused():
    with pytest.raises(ValueError, match="'balance' stands there twice"):
        parse_named_values(["balance=1", "z=0", "balance=2"])


def test_a_text_file_is_written_whole(tmp_path):
    write_text(tmp_path / "a.txt", "größer\n")
    assert (tmp_path / "a.txt").read_bytes() == "größer\n".encode()
    write_text(str(tmp_path / "a.txt"), "neu")
    assert (tmp_path / "a.txt").read_text() == "neu" and os.listdir(tmp_path) == ["a.txt"]


def full_disk(*args, **kwargs):
    raise OSError("No space left on device")


def test_a_failing_write_leaves_the_old_text(tmp_path, monkeypatch):
    write_text(tmp_path / "a.txt", "old")
    monkeypatch.setattr(files.os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.txt", "half \ud800")
    assert (tmp_path / "a.txt").read_text() == "old"


def test_tensors_are_written_whole_with_their_metadata(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": torch.full((2,), math.pi)}, {"step": "3"})
    monkeypatch.setattr(files.os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_tensors(path, {"x": torch.zeros(2)})
    assert torch.equal(load_file(path)["x"], torch.full((2,), math.pi))
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        assert file.metadata() == {"step": "3"}


def test_a_new_folder_gets_its_name_when_it_is_full(tmp_path):
    with new_folder(tmp_path / "deep" / "out") as folder:
        (folder / "a").write_text("a")
        assert not (tmp_path / "deep" / "out").exists()
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"] and (tmp_path / "deep" / "out" / "a").read_text() == "a"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_new_folder_is_removed_when_filling_it_fails(tmp_path, error):
    with pytest.raises(error), new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("a")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_new_folder_starts_empty_after_a_run_that_was_killed(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "stale").write_text("x")
    with new_folder(tmp_path / "out"):
        pass
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: p.write_text("x")], ids=["folder", "file"])
def test_what_exists_is_not_written_over(tmp_path, make):
    make(tmp_path / "out")
    with pytest.raises(ValueError, match="out exists already; name another folder"), new_folder(tmp_path / "out"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("coefficient", ["x", -0.1, None, math.nan, math.inf, True, 1e300])
def test_a_coefficient_that_is_no_number_is_named(coefficient):
    with pytest.raises(ValueError, match="aux_losses: balance="):
        MoEOptions(aux_losses={"balance": coefficient})


@pytest.mark.parametrize("change", ["top", "inside", "broken"])
def test_a_recipe_of_another_version_is_refused_by_its_name(tmp_path, change):
    path = tmp_path / "recipe.json"
    Recipe(model="m", data="d", output="o").save(path)
    values = json.loads(path.read_text())
    (values if change == "top" else values["moe"])["new_field"] = 1
    path.write_text("{" if change == "broken" else json.dumps(values))
    with pytest.raises(
        ValueError, match=r"recipe.json( is not a recipe of this version: .*new_field|, line 1, column 2: broken JSON)"
    ):
        Recipe.load(path)


def test_a_stage_takes_a_part_of_its_options():
    recipe = Recipe("dense", "data.json", "out")
    changed = recipe.but(stage2={"steps": 10}, seed=1)
    assert changed.stage2 == replace(recipe.stage2, steps=10) and changed.stage3 == recipe.stage3 and changed.seed == 1
    with pytest.raises(OptionError, match="stps"):
        recipe.but(stage2={"stps": 10})
    with pytest.raises(OptionError, match=r"recipe.but\(stage3={'steps': ...}\)"):
        recipe.but(steps=10)


@pytest.mark.parametrize("name", ["http://host/a.tar", "s3://bucket/{000..001}.tar"])
def test_addresses_are_refused_as_data(name):
    with pytest.raises(OptionError, match=r"^data: .*: addresses are not read. Mount the bucket"):
        Recipe("dense", name, "out", streaming=10).sources_of(1)
