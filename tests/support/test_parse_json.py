"""JSON whose objects have a key twice is refused wherever a user's file is read: one of the two values would be lost."""

import json

import pytest
from rows import llava

from evomoe.data.records import load_records
from evomoe.recipe.named_recipes import EVOMOE
from evomoe.recipe.recipe import Recipe
from evomoe.support.parse_json import parse_json


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '[{"b": {"a": 1, "c": 2, "a": 1}}]', '{"a": [], "x": 0, "a": {}}'])
def test_the_key_is_named(text):
    with pytest.raises(ValueError, match="^name.json: the key 'a' occurs twice in one object"):
        parse_json(text, "name.json")
    with pytest.raises(ValueError, match="^name.json, line 7: the key 'a' occurs twice in one object"):
        parse_json(text, "name.json", 7)
    assert parse_json(text.replace("a", "d", 1), "name.json")


@pytest.mark.parametrize("lines", [False, True])
def test_records_with_a_key_twice_are_refused(tmp_path, lines):
    rows = [json.dumps(llava(None)) for _ in range(3)]
    rows[2] = '{"conversations": [], ' + rows[2][1:]
    path = tmp_path / ("data.jsonl" if lines else "data.json")
    path.write_text("\n".join(rows) if lines else "[" + ",\n".join(rows) + "]")
    with pytest.raises(ValueError, match="data.jsonl?, line 3: the key 'conversations' occurs twice"):
        load_records(path)


def test_a_recipe_with_a_key_twice_is_refused(tmp_path):
    EVOMOE.but(model="m", data="d", output="o").save(tmp_path / "recipe.json")
    text = (tmp_path / "recipe.json").read_text().replace('"seed": 0', '"seed": 0, "seed": 1', 1)
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(ValueError, match="recipe.json: the key 'seed' occurs twice"):
        Recipe.load(tmp_path / "recipe.json")
