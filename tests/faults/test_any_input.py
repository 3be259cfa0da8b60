"""Whatever stands in a file of a user's, it is used or refused in words: records, configurations, files of answers.

``make test-faults`` tries EVOMOE_EXAMPLES of each; a quick test run a few.
"""

import json
import os
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import make_processor, make_records, write_workspace

from evomoe.data.conversations import ConversationDataset
from evomoe.data.records import load_records
from evomoe.evaluation.scoring import score_predictions
from evomoe.model.loading import load_config, load_model, load_processor
from evomoe.recipe.recipe import Recipe

MANY = int(os.environ.get("EVOMOE_EXAMPLES", "300"))
WORDS = st.text(max_size=12) | st.sampled_from(
    ["<image>", "human", "gpt", "0.png", "../0.png", "user", "assistant", "\ud83d", "\0", "1e999", "yes"]
)
LEAVES = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_subnormal=False) | WORDS
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=8)


def examples(test):
    """The test with a few inputs, and as ``faults`` with many."""

    @pytest.mark.parametrize("count", [15, pytest.param(MANY, marks=[pytest.mark.faults, pytest.mark.timeout(7200)])])
    def all_of(workspace, count):
        checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
        quick = count != MANY  # the same inputs each time: `make test` says the same of the same code
        settings(max_examples=count, deadline=None, derandomize=quick, suppress_health_check=checks)(
            given(st.data())(lambda data: test(workspace, data))
        )()

    all_of.__name__, all_of.__doc__ = test.__name__, test.__doc__
    return all_of


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return write_workspace(tmp_path_factory.mktemp("any"))


def places(value, path=()):
    """Where something stands in a JSON value."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def put(value, path, new):
    """The JSON value with something else in one place."""
    if not path:
        return new
    copied = value.copy()
    copied[path[0]] = put(value[path[0]], path[1:], new)
    return copied


def spoiled(data, value):
    """The JSON value with one or two places that hold anything."""
    for _ in range(data.draw(st.integers(1, 2))):
        value = put(value, data.draw(st.sampled_from(list(places(value)))), data.draw(VALUES))
    return value


def written(data, value) -> bytes:
    """As text, whole or cut."""
    text = json.dumps(value).encode()
    return text[: data.draw(st.integers(0, len(text)))] if data.draw(st.integers(0, 5)) == 0 else text


def used_or_refused(use) -> None:
    try:
        use()
    except (ValueError, OSError) as error:
        assert str(error).strip()


@examples
def test_records(workspace, data):
    file = workspace / "spoiled.json"
    file.write_bytes(written(data, spoiled(data, make_records(6))))

    def use():
        dataset = ConversationDataset(load_records(file, workspace / "images", "skip"), make_processor(), 64, "skip")
        dataset.check()
        dataset[0]

    used_or_refused(use)


@examples
def test_configurations(workspace, data):
    folder, source = workspace / "spoiled", workspace / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    name = data.draw(st.sampled_from(["config.json", "generation_config.json", "processor_config.json", "tokenizer_config.json"]))
    (folder / name).write_bytes(written(data, spoiled(data, json.loads((source / name).read_text()))))
    for use in (load_config, load_model, load_processor):
        used_or_refused(lambda use=use: use(folder))


@examples
def test_recipes(workspace, data):
    Recipe("model", "data.json", "out").save(workspace / "recipe.json")
    values = json.loads((workspace / "recipe.json").read_text())
    (workspace / "spoiled-recipe.json").write_bytes(written(data, spoiled(data, values)))
    used_or_refused(lambda: Recipe.load(workspace / "spoiled-recipe.json"))


@examples
def test_answers(workspace, data):
    questions = [{"question_id": n, "text": "is it ?", "image": f"{n}.jpg", "label": "yes" if n % 2 else "no"} for n in range(4)]
    answers = [{"question_id": n + 1, "text": "Yes", "prompt": "is it ?"} for n in range(4)]
    folder = workspace / "pope"
    (folder / "coco").mkdir(parents=True, exist_ok=True)
    for category in ("random", "popular", "adversarial"):
        lines = [json.dumps(question) for question in questions]
        (folder / "coco" / f"coco_pope_{category}.json").write_text("\n".join(lines))
    whole = workspace / "whole.jsonl"
    whole.write_text("\n".join(json.dumps(answer) for answer in answers))
    assert score_predictions("pope", whole, folder, "official", None, True, True)  # so that what follows is about answers
    rows = spoiled(data, answers)
    text = "\n".join(json.dumps(row) for row in rows) if isinstance(rows, list) else json.dumps(rows)
    (workspace / "answers.jsonl").write_text(text)
    used_or_refused(lambda: score_predictions("pope", workspace / "answers.jsonl", folder, "official", None, True, True))
