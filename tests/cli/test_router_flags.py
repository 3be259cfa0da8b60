"""The options of a router as flags: shown for the router that is named, and plain values in the recipe."""

from dataclasses import make_dataclass, replace

import pytest
from test_cli_surface import help_of

from evomoe.cli import main
from evomoe.cli.router_flags import plain, plain_recipe, typed, typed_names, typed_recipe
from evomoe.model.routers import ROUTERS
from evomoe.model.routers.linear import LinearRouter
from evomoe.recipe.named_recipes import RECIPES
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.router_options import DTROptions
from evomoe.recipe.row_options import RouterOptions


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        (["train"], ["--router-options.hypernet-width", "--router-options.rank"]),
        (["train", "--router", "dtr+shared"], ["--router-options.rank"]),
        (["train", "--recipe", "moe-llava", "--router=top_p"], ["--router-options.p", "--router-options.most"]),
        (["upcycle", "--router", "fixed"], ["--router-options.expert"]),
        (["params", "--router", "zero_computation"], ["--router-options.identity"]),
        (["attach"], ["--router-options.rho", "--router-options.cap-scope {token,batch,expectation}"]),
    ],
)
def test_help_shows_the_options_of_the_router_that_is_named(verb, options):
    text = help_of(*verb)
    assert all(option in text for option in options)
    assert ("--router-options.rank" in text) == any("rank" in option for option in options)


def test_a_mistyped_option_of_a_router_names_the_nearest(capsys):
    with pytest.raises(SystemExit):
        main(["upcycle", "a", "b", "--router-options.rnk", "3"])
    assert "--router-options.rank" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [["train", "--model", "m"], ["upcycle", "a", "b"], ["params"]])
def test_options_of_a_router_that_is_not_there_name_the_router(verb, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        main([*verb, "--router", "norm", "--router-options.temperature", "3"])
    told = capsys.readouterr().err
    assert "evomoe: --router: there is no 'norm'" in told and "If it is your own, import the file that registers it first" in told
    monkeypatch.setitem(ROUTERS, "norm", lambda *_: None)
    with pytest.raises(SystemExit):
        main([*verb, "--router", "norm", "--router-options.temperature", "3"])
    assert "router 'norm' is not a class derived from evomoe.model.routers.Router" in capsys.readouterr().err


def test_a_router_s_options_that_are_the_defaults_leave_the_recipe_as_it_was(tmp_path):
    base = RECIPES["evomoe"].but(model="m", data="d", output="o", router_options={"rank": 16})
    shown = typed_recipe(base, "dtr")
    assert shown.moe.router_options == DTROptions(rank=16)
    assert plain_recipe(shown, base, []) == base and type(plain_recipe(shown, base, [])) is Recipe
    changed = replace(shown, moe=replace(shown.moe, router_options=DTROptions(hypernet_width=8)))
    typed = ["--router-options.hypernet_width=8"]
    assert plain_recipe(changed, base, typed) == base.but(router_options={"rank": 16, "hypernet_width": 8})


@pytest.mark.parametrize(
    "flags", [["--router-options.identity", "0", "--router-options.no-zero"], ["--router-options.identity=0"]]
)
def test_a_default_that_someone_types_is_an_option_like_any_other(flags):
    """What it would be without that may be another number: attach measures it of the model."""
    assert typed_names(flags) >= {"identity"} and ("zero" in typed_names(flags)) == (len(flags) > 1)
    base = RECIPES["evomoe"].but(model="m", data="d", output="o").moe
    given = replace(typed(base, "dtr"), router_options=DTROptions())
    assert plain(given, base, ["--router-options.rank", "16"]).router_options == {"rank": 16}


def test_another_router_than_the_recipe_s_takes_none_of_its_options(tmp_path, capsys):
    RECIPES["evomoe"].but(model="m", data="d", output="o", router_options={"rank": 8}).save(tmp_path / "recipe.json")
    recipe = ["train", "--recipe", str(tmp_path / "recipe.json")]
    assert "--router-options.rho" in help_of(*recipe, "--router", "anyexperts")
    assert main([*recipe, "--router", "anyexperts", "--router-options.rho", "2"]) == 1
    assert capsys.readouterr().err.startswith("evomoe: m: there is no such folder")  # the flags were read


def test_a_router_of_one_s_own_has_flags_too(monkeypatch):
    class Mine(LinearRouter):
        """A router of one's own."""

        Options = make_dataclass("MineOptions", [("scale", float, 2.0)], bases=(RouterOptions,), frozen=True)

    monkeypatch.setitem(ROUTERS, "mine", Mine)
    assert "--router-options.scale FLOAT (default: 2.0)" in help_of("train", "--router", "mine")
