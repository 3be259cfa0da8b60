"""Configurations and processors that cannot be: one sentence with the folder from every verb, before memory is asked for."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_runs import make_recipe
from tiny import write_workspace

from evomoe.conversion.upcycled_folder import upcycle_folder
from evomoe.data.turns import Turn
from evomoe.evaluation.evaluate import evaluate_checkpoint
from evomoe.evaluation.evaluation_options import EvaluationOptions
from evomoe.evaluation.generation import Asked, Prompts
from evomoe.model.loading import load_model, load_processor
from evomoe.model.possible import check_pictures, check_sizes
from evomoe.recipe.options import MoEOptions
from evomoe.serving.conversation import Conversation, ConversationError
from evomoe.serving.sampling import Sampling
from evomoe.training.dry_run import describe
from evomoe.training.parameters import describe_parameters
from evomoe.training.run import run


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return write_workspace(tmp_path_factory.mktemp("possible"))


@pytest.fixture
def there(whole, tmp_path) -> Path:
    shutil.copytree(whole, tmp_path / "there")
    return tmp_path / "there"


def change(folder: Path, name: str, value: object, file: str = "config.json") -> None:
    config = json.loads((folder / "model" / file).read_text())
    *parts, last = name.split(".")
    inner = config
    for part in parts:
        inner = inner[part]
    inner[last] = value
    (folder / "model" / file).write_text(json.dumps(config))


def verbs(folder: Path, with_processor: bool = True) -> dict:
    model, recipe = str(folder / "model"), make_recipe(folder)
    found = {
        "dry run": lambda: describe(recipe),
        "train": lambda: run(recipe),
        "upcycle": lambda: upcycle_folder(model, folder / "out"),
        "eval": lambda: evaluate_checkpoint(model, ["easy-vqa"], EvaluationOptions(limit=1, output=str(folder / "scores"))),
    }
    others = {"params": lambda: describe_parameters(model, MoEOptions()), "load": lambda: load_model(model)}
    return found if with_processor else found | others


def check_refused(verb, folder: Path, message: str = "") -> None:
    with pytest.raises(ValueError, match=message) as caught:
        verb()
    assert "\n" not in str(caught.value) and str(folder / "model") in str(caught.value), str(caught.value)
    assert not (folder / "run").exists() and not (folder / "out").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("text_config.hidden_size", -32, "text_config.hidden_size -32, which must be at least 1"),
        ("text_config.num_attention_heads", 0, "num_attention_heads 0, which must be at least 1"),
        ("text_config.num_key_value_heads", 3, "no multiple of num_key_value_heads 3"),
        ("text_config.hidden_size", "wide", "hidden_size"),
        ("text_config.num_hidden_layers", 10**9, "num_hidden_layers 1000000000; no model has more"),
        ("text_config.vocab_size", 10**12, "vocab_size 1000000000000; no model has more"),
        ("vision_config.patch_size", 0, "patch_size 0, which must be at least 1"),
        ("text_config.intermediate_size", None, "intermediate_size"),
        ("text_config.hidden_act", "none of these", "none of these"),
        ("text_config.attention_dropout", 3, "must lie between 0 and 1"),
        ("text_config.rope_parameters", {"rope_type": "none of these"}, ""),
        ("model_type", "bert", ""),
        ("model_type", [], ""),
        ("dtype", "none of these", ""),
        ("text_config", [], ""),
    ],
)
def test_a_configuration_that_cannot_be_is_one_sentence_from_every_verb(there, name, value, message):
    change(there, name, value)
    for verb in verbs(there, with_processor=False).values():
        check_refused(verb, there, message)


def names(values: dict, before: str = ""):
    for name, value in values.items():
        yield f"{before}{name}"
        if isinstance(value, dict):
            yield from names(value, f"{before}{name}.")


VALUES = st.sampled_from([-1, 0, 1, 3, 1.5, 10**9, -(10**9), "word", "", None, True, [], {}, [1, 2], {"a": 1}, "1e9"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=40)
@given(st.data())
def test_whatever_stands_in_a_configuration_it_is_counted_or_refused(whole, data):
    file = whole / "model" / "config.json"
    before = file.read_text()
    name = data.draw(st.sampled_from(sorted(names(json.loads(before)))))
    try:
        change(whole, name, data.draw(VALUES))
        describe_parameters(str(whole / "model"), MoEOptions())
    except ValueError as error:
        assert "\n" not in str(error) and str(whole / "model") in str(error), str(error)
    finally:
        file.write_text(before)


@pytest.fixture
def many_words(there):
    """A tokenizer with more words than the embedding has rows, as CodeLlama-34B's."""
    file = there / "model" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["vocab"]["more"] = 130
    file.write_text(json.dumps(tokenizer))
    return there


BEYOND = r"it has the token 'more', number 130, and the model's embedding has rows up to 127 \(vocab_size 128\)"


def test_a_tokenizer_may_have_more_words_than_the_embedding(many_words):
    for name in ("dry run", "train", "upcycle"):
        verbs(many_words)[name]()


@pytest.mark.parametrize("where", ["question", "template"])
def test_a_text_with_a_word_that_has_no_row_is_refused(many_words, where):
    model, data = many_words / "model", many_words / "data.json"
    if where == "template":
        template = model / "chat_template.jinja"
        template.write_text(template.read_text().replace("<|{{", "more <|{{"))
    else:
        records = json.loads(data.read_text())
        records[1]["conversations"][0]["value"] += " more ?"
        data.write_text(json.dumps(records))
    named = "all 24 records are bad" if where == "template" else r"data.json, record 1 \(id '1'\)"
    with pytest.raises(ValueError, match=f"{named}: {BEYOND}"):
        describe(make_recipe(many_words))
    words = "more ?" if where == "question" else "what ?"
    with pytest.raises(ConversationError, match=BEYOND):
        Conversation.load_from(str(model)).say(words, Sampling(max_new_tokens=2))
    asked = [Asked("question 'q1'", (Turn("user", words),))]
    with pytest.raises(ValueError, match=f"question 'q1': .*{BEYOND}"):
        Prompts(asked, load_processor(model))[0]


@pytest.mark.parametrize(
    ("name", "value"), [("text_config.eos_token_id", 500), ("text_config.eos_token_id", [2, 500]), ("image_token_index", 128)]
)
def test_an_id_beyond_the_embedding_is_refused_by_every_verb(there, name, value):
    change(there, name, value)
    for verb in verbs(there).values():
        check_refused(verb, there, r"and the model's embedding has rows up to 127")


@pytest.mark.parametrize("template", ["{% for", "{{ 1 / 0 }}", "{{ messages.x.y }}", "nothing of it", ""])
def test_a_chat_template_that_cannot_be_used_is_refused_by_what_copies_it_too(there, template):
    (there / "model" / "chat_template.jinja").write_text(template)
    for name in ("dry run", "train", "upcycle"):
        check_refused(verbs(there)[name], there, "its processor cannot be used: ")


@pytest.mark.parametrize("file", ["tokenizer.json", "processor_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": 3}'])
def test_a_broken_processor_is_one_sentence(there, file, content):
    assert (there / "model" / file).is_file()
    (there / "model" / file).write_text(content)
    try:
        upcycle_folder(str(there / "model"), there / "out")
    except ValueError as error:
        assert "\n" not in str(error) and str(there / "model") in str(error), str(error)


@pytest.mark.parametrize(
    "values",
    [
        {"vocab_size": 32000, "pad_token_id": 32001, "text_config": {"vocab_size": 32064}},
        {"quantization_config": {"quant_method": None}},
        {"dtype": {"text_config": "bfloat16", "vision_config": "float32"}},
    ],
)
def test_what_a_configuration_may_hold(values):
    check_sizes(values, "model")


@pytest.mark.parametrize("own", [{"image_mean": 0.5}, {"image_mean": [123.7, 116.3, 103.5], "do_rescale": False}])
def test_means_that_a_processor_may_have(own):
    check_pictures(SimpleNamespace(image_processor=SimpleNamespace(**own)), "model")
    with pytest.raises(ValueError, match="image_mean"):
        check_pictures(SimpleNamespace(image_processor=SimpleNamespace(image_mean=[300.0] * 3, do_rescale=False)), "model")
