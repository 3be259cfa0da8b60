"""Data of several sources: names, weights and folders, on the command line, in files and in Python."""

import json
from pathlib import Path

import pytest

from evomoe.recipe.data_mix import DataSource, data_sources, parse_source
from evomoe.recipe.options import StageOptions
from evomoe.recipe.recipe import Recipe
from evomoe.support.errors import OptionError


@pytest.mark.parametrize(
    ("text", "name", "weight"),
    [
        ("a.json", "a.json", 1),
        ("a.json:0.5", "a.json", 0.5),
        ("a.json:2", "a.json", 2),
        ("a.jsonl:1e-2", "a.jsonl", 0.01),
        ("hub/name", "hub/name", 1),
        ("hub/name:train", "hub/name:train", 1),
        ("hub/name:train:2", "hub/name:train", 2),
        ("hub/name:3", "hub/name", 3),
        ("hub/name:3:1", "hub/name:3", 1),
        ("C:\\data\\a.json", "C:\\data\\a.json", 1),
        ("C:\\data\\a.json:0.5", "C:\\data\\a.json", 0.5),
        ("with:colon.json", "with:colon.json", 1),
    ],
)
def test_a_weight_stands_behind_the_last_colon(text, name, weight):
    assert parse_source(text, "data") == (name, weight)


def test_what_is_there_by_that_name_is_that(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd:2").write_text("")
    (tmp_path / "odd:set").mkdir()
    assert parse_source("odd:2", "data") == ("odd:2", 1)
    assert parse_source("odd:2:3", "data") == ("odd:2", 3)
    assert parse_source("odd:set:train", "data") == ("odd:set:train", 1)


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "-inf", "1001", "1e9", "1e-7", "1e-300"])
def test_a_weight_is_positive(weight):
    with pytest.raises(OptionError, match=r"stage1.data: b.json:.*: the weight must be a number from 1e-06 to 1000"):
        Recipe("m", "a.json", "o", stage1=StageOptions(data=("a.json", f"b.json:{weight}")))


@pytest.mark.parametrize("text", ["b.json:x", "b.json:", "b.jsonl:0,5", "hub/name:train:x", "b.json:0.5:x"])
def test_a_weight_is_a_number(text):
    with pytest.raises(OptionError, match=r"^data: .* is not a weight. Write a number, such as .*:0.5"):
        Recipe("m", ["a.json", text], "o")


def test_a_source_stands_once():
    with pytest.raises(OptionError, match="a.json stands there twice; give it a weight instead: a.json:2"):
        Recipe("m", ["a.json", "b.json", "a.json:0.5"], "o")
    for wrong, message in (((), "there is none"), (("a.json", ""), "a name is empty"), (("a.json", 3), "must be text or a list")):
        with pytest.raises(OptionError, match=f"^data: .*{message}"):
            Recipe("m", wrong, "o")


def test_folders_are_one_for_all_or_one_for_each():
    two = ("a.json", "b.json:2")
    assert data_sources(two, "p") == (DataSource("a.json", 1, "p"), DataSource("b.json", 2, "p"))
    assert [source.image_root for source in data_sources(two, ("p", ""))] == ["p", None]
    assert [source.image_root for source in data_sources(two, (None, "q"))] == [None, "q"]
    recipe = Recipe("m", two, "o", image_root=["p", "q"], stages=(1,))
    assert [source.image_root for source in recipe.sources_of(1)] == ["p", "q"]
    with pytest.raises(OptionError, match="^image_root: it has 3 folders for 2 sources. Give one for all, or one for each"):
        Recipe("m", two, "o", image_root=("p", "q", "r"))
    with pytest.raises(OptionError, match="^stage2.image_root: it has 2 folders for 1 source") as caught:
        Recipe("m", two, "o", image_root=("p", "q"), stage2=StageOptions(data="c.json"))
    assert caught.value.option == "stage2.image_root"
    own = Recipe("m", two, "o", image_root=("p", "q"), stage2=StageOptions(data="c.json", image_root="r", train="ffn"))
    assert own.sources_of(2) == (DataSource("c.json", 1, "r"),) and len(own.sources_of(1)) == 2


def test_one_source_is_the_same_however_it_is_written(tmp_path):
    one, listed = Recipe("m", "a.json", "o", image_root="p"), Recipe("m", [Path("a.json")], "o", image_root=["p"])
    assert one == listed and listed.data == "a.json" and not one.differences(listed)
    one.save(tmp_path / "one.json")
    assert json.loads((tmp_path / "one.json").read_text())["data"] == "a.json"


def test_mixes_are_kept_in_recipes_of_both_kinds(tmp_path):
    mix = Recipe(
        "m", ["a.json", "b.json:0.5"], "o", image_root=["p", ""], stage1=StageOptions(data=["c.json", "d.json:2"], image_root="q")
    )
    mix.save(tmp_path / "mix.json")
    assert Recipe.load(tmp_path / "mix.json") == mix
    (tmp_path / "mix.yaml").write_text(
        "model: m\noutput: o\ndata: [a.json, b.json:0.5]\nimage_root: [p, '']\nstage1:\n  data:\n  - c.json\n  - d.json:2\n  image_root: q\n"
    )
    loaded = Recipe.load(tmp_path / "mix.yaml")
    assert (loaded.data, loaded.image_root, loaded.sources_of(1)) == (mix.data, mix.image_root, mix.sources_of(1))
    assert mix.differences(mix.but(data=("a.json", "b.json:0.6"))) == [
        "data: ('a.json', 'b.json:0.6') -> ('a.json', 'b.json:0.5')"
    ]
    (tmp_path / "wrong.yaml").write_text("model: m\noutput: o\ndata: [a.json, b.json:0]\n")
    with pytest.raises(OptionError, match="data: b.json:0: the weight must be a number from .* It stands in .*wrong.yaml"):
        Recipe.load(tmp_path / "wrong.yaml")


def test_a_recipe_from_before_has_one_source(tmp_path):
    recipe = Recipe("m", "a.json", "o")
    recipe.save(tmp_path / "old.json")
    values = json.loads((tmp_path / "old.json").read_text())
    for stage in range(4):
        del values[f"stage{stage}"]["image_root"]
    (tmp_path / "old.json").write_text(json.dumps(values))
    assert Recipe.load(tmp_path / "old.json").sources_of(1) == (DataSource("a.json"),)
