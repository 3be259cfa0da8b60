"""Chat templates of any form: what they render, and which are refused at once."""

import pytest
import torch
from spoken import END, answers, record
from transformers import LlavaProcessor

from evomoe.data.chat_template import with_end
from evomoe.data.conversations import ConversationDataset, LabelMismatchError
from evomoe.data.records import BadRecordError


@pytest.mark.parametrize(("adds_bos", "writes_bos"), [(True, True), (True, False), (False, True), (False, False)])
def test_first_token_is_never_doubled(make_processor, cases, adds_bos, writes_bos):
    processor = make_processor(adds_bos=adds_bos)
    if writes_bos:
        processor.chat_template = "{{ bos_token }}" + processor.chat_template
    dataset = ConversationDataset([cases["one image"]], processor)
    ids = dataset[0]["input_ids"].tolist()
    assert ids.count(processor.tokenizer.bos_token_id) == (adds_bos or writes_bos)
    assert dataset.lengths() == [len(ids)]
    assert answers(dataset[0], processor.tokenizer) == "a blue one" + END


PLAIN = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}" + (
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


PRINTED = PLAIN.replace("m['role'] + ': ' + m['content'] + eos_token", "m['role'] ~ ': ' ~ m['content'] ~ eos_token")


@pytest.mark.parametrize("template", [PLAIN, PRINTED], ids=["fails on lists", "prints lists"])
def test_template_for_plain_text_gets_plain_text(make_processor, cases, template):
    processor = make_processor(template=template)
    item = ConversationDataset([cases["several images"]], processor)[0]
    assert answers(item, processor.tokenizer) == "all</s>"
    assert "<image>\nand " in processor.tokenizer.decode(item["input_ids"])


def test_tokenizer_alone_takes_text(tokenizer, cases):
    tokenizer.chat_template = PLAIN
    dataset = ConversationDataset([cases["no image"], cases["one image"]], tokenizer)
    assert answers(dataset[0], tokenizer) == "well  then, \n done</s>"
    with pytest.raises(BadRecordError, match="record 0: it has images, but .* takes only text"):
        dataset[1]


def change(make_processor, old: str, new: str) -> LlavaProcessor:
    processor = make_processor()
    assert old in processor.chat_template
    processor.chat_template = processor.chat_template.replace(old, new)
    return processor


def test_template_that_strips_is_fine(make_processor):
    processor = change(make_processor, "part['text']", "part['text'] | trim")
    spaced = record(("user", "  what? "), ("assistant", " a shape \n"))
    assert answers(ConversationDataset([spaced], processor)[0], processor.tokenizer) == "a shape" + END


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "part['text']",
            "part['text'] | upper | replace('PONG', 'pong') | replace('PING', 'ping')",
            "loses, repeats or rewrites",
        ),
        ("for message in messages", "for message in messages[-2:]", r"text of turn 0 \(system\): 'be brief'"),
        (
            "for message in messages",
            "for message in messages if message['role'] != 'system'",
            r"loses, repeats or rewrites the text of turn 0 \(system\)",
        ),
        ("<image>", "", "has 0 <image> for 2 images"),
    ],
    ids=["rewrites", "drops turns", "drops the system turn", "drops pictures"],
)
def test_unsuitable_template_is_an_error_at_once(make_processor, cases, old, new, message):
    processor = change(make_processor, old, new)
    with pytest.raises(LabelMismatchError, match=message) as caught:
        ConversationDataset([cases["several turns"]], processor, on_bad_record="skip")
    assert str(caught.value).startswith("data, record 0: ")


def test_a_first_record_that_does_not_suit_the_template_can_be_skipped(make_processor):
    processor = change(make_processor, "part['text']", "part['text'] | replace('curs', 'bless')")
    cursed, good = (
        record(("user", "cursed?"), ("assistant", "a")),
        record(("user", "good?"), ("assistant", "a"), where="data, record 1"),
    )
    dataset = ConversationDataset([cursed, good], processor, on_bad_record="skip")
    dataset.check()
    assert len(dataset) == 1 and dataset.skipped[0].startswith("data, record 0: the chat template loses, repeats or rewrites")
    with pytest.raises(LabelMismatchError, match="data, record 0"):
        ConversationDataset([cursed, good], processor)


def test_lost_turn_is_found_even_if_another_says_the_same(make_processor):
    processor = change(make_processor, "for message in messages", "for message in messages[:2] + messages[3:]")
    twice = record(("user", "again"), ("assistant", "one"), ("user", "again"), ("assistant", "two"))
    with pytest.raises(LabelMismatchError, match=r"loses, repeats or rewrites the text of turn 2 \(user\): 'again'"):
        ConversationDataset([twice], processor)


def test_answer_in_the_wrong_place_is_an_error(make_processor):
    # The words of the answer are in the text, but before the prompt that asks for it.
    template = (
        "{% for m in messages if m['role'] == 'user' %}Q{% for p in m['content'] %}{{ p['text'] }}{% endfor %}"
        "{% for m in messages if m['role'] == 'assistant' %}{{ m['content'][0]['text'] }}{% endfor %}{% endfor %}"
        "{% if messages[-1]['role'] == 'assistant' %}A{% endif %}"
    )
    ask = record(("user", "ping"), ("assistant", "pong"), ("user", ""), ("assistant", "again"))
    with pytest.raises(LabelMismatchError, match=r"loses, repeats or rewrites the text of turn 1 \(assistant\)"):
        ConversationDataset([ask], make_processor(template=template))


def test_template_that_refuses_or_is_missing(make_processor, cases):
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    processor = make_processor()
    processor.chat_template = refuses + processor.chat_template
    dataset = ConversationDataset([cases["no image"], cases["several turns"]], processor)
    with pytest.raises(BadRecordError, match="record 0: the chat template refuses the conversation: no system turn"):
        dataset[1]
    skipping = ConversationDataset([cases["several turns"], cases["no image"]], processor, on_bad_record="skip")
    assert torch.equal(skipping[0]["input_ids"], dataset[0]["input_ids"])
    with pytest.raises(BadRecordError, match="no system turn"):
        ConversationDataset([cases["several turns"]], processor)
    processor.chat_template = None
    with pytest.raises(ValueError, match="LlavaProcessor has no chat template; set processor.chat_template"):
        ConversationDataset([cases["no image"]], processor)
    processor.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(ValueError, match="cannot render a question and its answer"):
        ConversationDataset([cases["no image"]], processor)


@pytest.mark.parametrize("after", ["", " ", "\n", "\n\n### Next\n"], ids=["nothing", "a blank", "a line", "words"])
def test_where_the_template_has_no_end_the_last_answer_gets_one(make_processor, after):
    turns = (("user", "hello"), ("assistant", "one"), ("user", "and"), ("assistant", "two"))
    processor = make_processor(template=PLAIN.replace("eos_token", repr(after)))
    dataset = ConversationDataset([record(*turns)], processor)
    assert answers(dataset[0], processor.tokenizer).endswith("two" + after.rstrip() + "</s>")
    assert answers(dataset[0], processor.tokenizer).count("</s>") == 1
    assert dataset[0]["labels"][-1] == dataset.end_id == processor.tokenizer.eos_token_id
    assert dataset.lengths() == [len(dataset[0]["labels"])]
    assert dataset.notes == [
        "The chat template puts no special token after an answer; '</s>' is put after the last one of each record, so that the model "
        "learns where to stop."
    ]
    open_end = ConversationDataset([record(*turns, ("user", "thanks"))], processor)
    assert "</s>" not in answers(open_end[0], processor.tokenizer)


def test_an_end_of_the_template_is_the_end(make_processor, cases):
    processor = make_processor(template=PLAIN.replace("+ eos_token", "+ '<end_of_utterance>'"))
    dataset = ConversationDataset([cases["no image"]], processor)
    assert dataset.notes == []
    assert processor.tokenizer.decode(dataset.end_id) == "<end_of_utterance>"
    processor.tokenizer.eos_token = None
    assert ConversationDataset([cases["no image"]], processor).notes == []
    processor.chat_template = PLAIN.replace("+ eos_token", "+ '.'")
    dataset = ConversationDataset([cases["no image"]], processor)
    assert dataset.end_id is None
    assert "the model will not learn where to stop" in dataset.notes[0]


@pytest.mark.parametrize(
    ("known", "end", "then"), [(None, None, None), (None, 7, 7), (2, 2, 2), (2, 7, [2, 7]), ([2, 7], 7, [2, 7]), (2, None, 2)]
)
def test_generation_stops_at_the_end_that_is_learned(known, end, then):
    assert with_end(known, end) == then
