"""The options of routers and initialisers, as their signatures have them."""

import re

import pytest
import torch
from tiny import make_language_model
from torch import nn
from transformers import AutoModelForCausalLM

from evomoe import upcycle
from evomoe.expert_init import INITS
from evomoe.options import check_options, describe_options
from evomoe.routers import ROUTERS
from evomoe.routers.linear import LinearRouter
from evomoe.words import counted, kind_of


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        ("router", "dtr", "hypernet_width=64, rank=16"), ("router", "dtr+shared", "hypernet_width=64, rank=16"),
        ("router", "linear", "none"), ("router", "shuffled", "inner=dtr, seed=0, and those of the inner one"),
        ("init", "noise", "std=0.001"), ("init", "evolved", "experts"), ("init", "replicate", "none"),
    ],
)  # fmt: skip
def test_options_are_those_of_the_signature(kind, name, options):
    assert describe_options(kind, {"router": ROUTERS, "init": INITS}[kind][name]) == options


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("dtr", {"rnk": 4}, "--router-options: router 'dtr' takes no 'rnk'; it takes hypernet_width=64, rank=16."),
        ("dtr+shared", {"rnk": 4}, "--router-options: router 'dtr+shared' takes no 'rnk'; it takes hypernet_width=64, rank=16."),
        ("linear", {"rank": 4}, "--router-options: router 'linear' takes no 'rank'; it takes none."),
        ("dtr", {"rank": "abc"}, "--router-options: rank of router 'dtr' is 'abc'; it must be a whole number."),
        ("dtr", {"rank": 2.5}, "--router-options: rank of router 'dtr' is 2.5; it must be a whole number."),
        ("shuffled", {"seed": True}, "--router-options: seed of router 'shuffled' is True; it must be a whole number."),
    ],
)
def test_a_wrong_option_of_a_router_is_named_with_those_there_are(name, values, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        upcycle(make_language_model(), router=name, router_options=values)


@pytest.mark.parametrize("values", [{"sdt": 1}, {"std": "abc"}, {"std": float("nan")}])
def test_a_wrong_option_of_an_initialiser_leaves_the_model_as_it_was(values):
    model = make_language_model()
    with pytest.raises(ValueError, match="--init-options: .*init 'noise'"):
        upcycle(model, expert_init="noise", init_options=values)
    assert type(model).__name__ == "LlamaForCausalLM"


def test_options_without_a_type_to_tell_by_are_let_pass():
    def init(ffn, num_experts, layer, generator, required, switch=False, **rest):
        """Nothing."""

    check_options("init", "mine", init, {"required": "x", "switch": True, "other": [1]})
    assert describe_options("init", init) == "required, switch=False, and those of the inner one"
    with pytest.raises(ValueError, match="switch of init 'mine' is 1; it must be true or false"):
        check_options("init", "mine", init, {"switch": 1})


def test_a_checkpoint_with_a_router_that_is_not_there_says_what_may_be_missing(tmp_path, monkeypatch):
    class Mine(LinearRouter):
        """A router of one's own."""

    monkeypatch.setitem(ROUTERS, "mine", Mine)
    upcycle(make_language_model(), router="mine").save_pretrained(tmp_path)
    monkeypatch.delitem(ROUTERS, "mine")
    with pytest.raises(ValueError, match="router: there is no 'mine'; .*import the file that registers it first"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_words():
    assert [counted(n, "record") for n in (0, 1, 1200)] == ["0 records", "1 record", "1,200 records"]
    assert [kind_of(value) for value in (1, "", {}, torch.zeros(1), nn.Identity())] == [
        "an int", "a str", "a dict", "a Tensor", "an Identity",
    ]  # fmt: skip
