"""The options of routers and initialisers: dataclasses, and whether given values suit."""

import re

import pytest
import torch
from tiny import make_language_model
from torch import nn
from transformers import AutoModelForCausalLM

from evomoe import upcycle
from evomoe.conversion.expert_init import INITS
from evomoe.model.aux_losses import AUX_LOSSES
from evomoe.model.routers import ROUTERS
from evomoe.model.routers.linear import LinearRouter
from evomoe.model.routing import GATES
from evomoe.recipe.init_options import INIT_OPTIONS
from evomoe.recipe.options import EvolutionOptions
from evomoe.recipe.router_options import ROUTER_OPTIONS
from evomoe.recipe.row_options import describe_options
from evomoe.support.errors import OptionError
from evomoe.support.text import counted, kind_of
from evomoe.training.evolution import RULES, check_rule


@pytest.mark.parametrize(
    ("table", "name", "options"),
    [
        (ROUTERS, "dtr", "hypernet_width=64, rank=16, cap=0.0"), (ROUTERS, "dtr+shared", "hypernet_width=64, rank=16, cap=0.0"),
        (ROUTERS, "linear", "none"), (ROUTERS, "shuffled", "inner=dtr, seed=0, inner_options"),
        (INITS, "noise", "std=0.001"), (INITS, "evolved", "experts"), (INITS, "replicate", "none"),
    ],
)  # fmt: skip
def test_options_are_those_of_the_dataclass(table, name, options):
    assert describe_options(table[name].Options) == options


def test_the_options_that_the_command_line_shows_are_the_routers():
    for router, options in ROUTER_OPTIONS.items():
        assert ROUTERS[router].Options is options
    for initialiser, options in INIT_OPTIONS.items():
        assert INITS[initialiser].Options is options


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("dtr", {"rnk": 4}, "router_options: router 'dtr' takes no 'rnk'; it takes hypernet_width=64, rank=16, cap=0.0."),
        ("dtr+shared", {"rnk": 4}, "router_options: router 'dtr+shared' takes no 'rnk'; it takes hypernet_width=64, rank=16, cap=0.0."),
        ("linear", {"rank": 4}, "router_options: router 'linear' takes no 'rank'; it takes none."),
        ("dtr", {"rank": "abc"}, "router_options.rank: router 'dtr' takes a whole number, not 'abc'."),
        ("dtr", {"rank": 2.5}, "router_options.rank: router 'dtr' takes a whole number, not 2.5."),
        ("dtr", {"rank": 0}, "router_options.rank: 0 must be at least 1."),
        ("shuffled", {"seed": True}, "router_options.seed: router 'shuffled' takes a whole number, not True."),
        ("anyexperts", {"k_min": "x"}, "router_options.k_min: router 'anyexperts' takes a number or nothing, not 'x'."),
        ("anyexperts", {"virtual": "one"}, "router_options.virtual: router 'anyexperts' takes one of zero, identity, constant, not 'one'."),
        ("anyexperts", {"biased": 1}, "router_options.biased: router 'anyexperts' takes true or false, not 1."),
    ],
)  # fmt: skip
def test_a_wrong_option_of_a_router_is_named_with_those_there_are(name, values, message):
    with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
        upcycle(make_language_model(), router=name, router_options=values)


@pytest.mark.parametrize("values", [{"sdt": 1}, {"std": "abc"}, {"std": float("nan")}, {"std": -1.0}])
def test_a_wrong_option_of_an_initialiser_leaves_the_model_as_it_was(values):
    model = make_language_model()
    with pytest.raises(OptionError, match="^init_options"):
        upcycle(model, expert_init="noise", init_options=values)
    assert type(model).__name__ == "LlamaForCausalLM"


def test_a_shuffled_router_hands_further_options_to_the_one_inside():
    flat, nested = ({"inner": "dtr", "rank": 3}, {"inner": "dtr", "inner_options": {"rank": 3}})
    assert ROUTERS["shuffled"].read(flat, 4) == ROUTERS["shuffled"].read(nested, 4)
    assert ROUTERS["shuffled"](8, 4, **flat).inner.options.rank == 3


def test_a_checkpoint_with_a_router_that_is_not_there_says_what_may_be_missing(tmp_path, monkeypatch):
    class Mine(LinearRouter):
        """A router of one's own."""

    monkeypatch.setitem(ROUTERS, "mine", Mine)
    upcycle(make_language_model(), router="mine").save_pretrained(tmp_path)
    monkeypatch.delitem(ROUTERS, "mine")
    with pytest.raises(ValueError, match="router: there is no 'mine'; .*import the file that registers it first"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


NO_ROUTERS = {"a function": lambda *_: None, "torch's own": nn.Linear, "an object": LinearRouter(8, 4)}


@pytest.mark.parametrize("what", NO_ROUTERS)
def test_a_row_that_is_no_router_is_named_where_it_is_used_and_leaves_the_others_alone(what, monkeypatch):
    monkeypatch.setitem(ROUTERS, "mine", NO_ROUTERS[what])
    said = "router 'mine' is not a class derived from evomoe.model.routers.Router"
    with pytest.raises(OptionError, match=said):
        upcycle(make_language_model(), router="mine")
    with pytest.raises(OptionError, match=said):
        upcycle(make_language_model(), router="shuffled", router_options={"inner": "mine"})
    upcycle(make_language_model(), router="linear", aux_losses={"balance": 0.1})


def test_rows_of_other_tables_are_looked_at_too(monkeypatch):
    for table, options in (
        (AUX_LOSSES, {"aux_losses": {"mine": 0.1}}),
        (GATES, {"gate": "mine"}),
        (INITS, {"expert_init": "mine"}),
    ):
        monkeypatch.setitem(table, "mine", 3)
        with pytest.raises(OptionError, match=f"{next(iter(options))} 'mine' is not (a function|an object of .*ExpertInit)"):
            upcycle(make_language_model(), **options)
    monkeypatch.setitem(RULES, "mine", 3)
    with pytest.raises(OptionError, match="rule 'mine' is not a function"):
        check_rule(EvolutionOptions(rule="mine"))


def test_words():
    assert [counted(n, "record") for n in (0, 1, 1200)] == ["0 records", "1 record", "1,200 records"]
    assert [kind_of(value) for value in (1, "", {}, torch.zeros(1), nn.Identity())] == [
        "an int", "a str", "a dict", "a Tensor", "an Identity",
    ]  # fmt: skip
