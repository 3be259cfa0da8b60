"""Special tokens that a user's texts hold on purpose, as in data with boxes: words from training to answers, if the user says so."""

import json

import pytest
import torch
from small_runs import make_recipe
from tiny import make_processor
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoProcessor, PreTrainedTokenizerFast

from evomoe import cli
from evomoe.data.allowed_tokens import allow_in_texts
from evomoe.data.chat_template import ChatTemplate
from evomoe.data.conversations import ConversationDataset
from evomoe.data.labels import IGNORED
from evomoe.data.records import load_records
from evomoe.serving.conversation import Conversation
from evomoe.serving.sampling import Sampling
from evomoe.support.errors import OptionError
from evomoe.support.processor import know_rows, rows_of
from evomoe.training.dry_run import describe
from evomoe.training.run import run

BOXES = {"<box>": 40, "</box>": 41, "<loc_0>": 42, "<loc_12>": 43}
ALLOWED = ("<box>", "</box>", "<loc_*>")


def with_boxes(folder) -> None:
    """Gives a saved tokenizer the special tokens of boxes, as those of Qwen-VL, PaliGemma and Florence have them."""
    file = folder / "tokenizer.json"
    held = json.loads(file.read_text())
    held["model"]["vocab"] |= BOXES
    held["added_tokens"] += [
        {
            "id": number,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token, number in BOXES.items()
    ]
    file.write_text(json.dumps(held))


@pytest.fixture
def boxed(workspace):
    """A workspace whose records ask for boxes, and answer with them."""
    with_boxes(workspace / "model")
    file = workspace / "data.json"
    records = json.loads(file.read_text())
    for record in records:
        record["conversations"][0]["value"] += "<box>"
        record["conversations"][1]["value"] = "<box><loc_12><loc_0></box>red"
    file.write_text(json.dumps(records))
    return workspace


def test_they_are_refused_unless_the_user_allows_them_and_the_way_is_named(boxed, capsys):
    recipe = make_recipe(boxed, stages=(3,), expert_init="noise")
    with pytest.raises(
        ValueError, match="turn 0 .user. holds '<box>', which the model reads as a control token.*`allow_special_tokens`"
    ):
        describe(recipe)
    arguments = [
        "--model", boxed / "model", "--data", boxed / "data.json", "--image-root", boxed / "images", "--output", boxed / "r",
        "--stages", "1", "--dry-run",
    ]  # fmt: skip
    assert cli.main(["train", *map(str, arguments)]) == 1
    assert "or train with --allow-special-tokens" in capsys.readouterr().err
    assert cli.main(["train", *map(str, arguments), "--allow-special-tokens", *ALLOWED]) == 0


def test_a_model_learns_them_shows_them_and_is_asked_with_them(boxed):
    recipe = make_recipe(boxed, stages=(3,), expert_init="noise").but(allow_special_tokens=ALLOWED)
    final = run(recipe, report=False)
    saved = AutoProcessor.from_pretrained(final).tokenizer
    assert saved.get_vocab() == AutoProcessor.from_pretrained(boxed / "model").tokenizer.get_vocab()
    assert saved.decode([43, 2, 40], skip_special_tokens=True).split() == ["<loc_12>", "<box>"]
    conversation = Conversation.load_from(str(final))
    with torch.no_grad():
        conversation.model.get_output_embeddings().weight.zero_()
    conversation.say("what<box>?", Sampling(max_new_tokens=2))
    assert BOXES["<box>"] in conversation.said.last.ids_T.tolist()
    assert run(recipe, resume=True, report=False) == final


def test_their_labels_are_placed_and_their_numbers_stay(boxed):
    processor = AutoProcessor.from_pretrained(boxed / "model")
    before, template = processor.tokenizer, processor.chat_template
    made = allow_in_texts(processor, ALLOWED)
    assert processor.tokenizer is before and made.chat_template == template and made.tokenizer.padding_side == before.padding_side
    item = ConversationDataset(load_records(boxed / "data.json", boxed / "images"), made)[0]
    labels = [number for number in item["labels"].tolist() if number != IGNORED]
    assert [number for number in labels if number in BOXES.values()] == [40, 43, 42, 41]


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("<zzz>", "no special token '<zzz>'; it has </box>, </s>, <box>"),
        ("red", "no special token 'red'"),
        ("<image>", "'<image>' is the model's image_token"),
        ("</s>", "'</s>' is the model's eos_token"),
        ("<pad>", "'<pad>' is the model's pad_token"),
        ("<|user|>", "'<|user|>' is written by the chat template"),
        ("<|assistant|>", "'<|assistant|>' is written by the chat template"),
        ("*", "is the model's"),
        ("<*", "is the model's"),
    ],
)
def test_what_means_something_to_the_model_is_never_allowed(boxed, pattern, told):
    processor = AutoProcessor.from_pretrained(boxed / "model")
    with pytest.raises(OptionError) as refused:
        allow_in_texts(processor, ["<box>", pattern])
    assert refused.value.option == "allow_special_tokens" and told in refused.value.message
    with pytest.raises(OptionError):
        describe(make_recipe(boxed, stages=(1,)).but(allow_special_tokens=("<box>", pattern)))


def test_a_tokenizer_alone_and_what_is_known_of_its_model(boxed):
    tokenizer = AutoProcessor.from_pretrained(boxed / "model").tokenizer
    know_rows(tokenizer, 7)
    made = allow_in_texts(tokenizer, ["<box>"])
    assert rows_of(made) == 7 and made.chat_template == tokenizer.chat_template
    assert ChatTemplate(made).tokenizer is made


def test_a_processor_without_such_tokens_says_what_it_has():
    with pytest.raises(OptionError, match="no special token '<box>'; it has "):
        allow_in_texts(make_processor(), ["<box>"])


def test_a_tokenizer_that_scores_its_words_keeps_them():
    """Its words stand in pairs with a score, of which no word may be taken out."""
    words = ["<unk>", "user", "assistant", "ping", "pong", ":", "<e>", "<loc_1>", "<loc_2>"]
    made = Tokenizer(Unigram([(word, -float(place)) for place, word in enumerate(words)], unk_id=0))
    made.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="<e>", pad_token="<e>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<e>{% endfor %}"
    tokenizer.add_special_tokens({"additional_special_tokens": words[-2:]})
    allowed = allow_in_texts(tokenizer, ["<loc_*>"])
    assert allowed.get_vocab() == tokenizer.get_vocab()
    assert allowed.decode(allowed("ping <loc_2>")["input_ids"], skip_special_tokens=True).split() == ["ping", "<loc_2>"]
