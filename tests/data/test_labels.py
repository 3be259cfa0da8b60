"""Labels are the answers, token by token; where they cannot be, the record is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from spoken import END, answers, record
from transformers import LlavaProcessor

from evomoe.data import conversations
from evomoe.data.conversations import ConversationDataset, LabelMismatchError, messages_of
from evomoe.data.labels import IGNORED
from evomoe.data.records import Record, Turn

CASES = ("one image", "several images", "no image", "several turns")


@pytest.mark.parametrize("case", CASES)
def test_labels_are_the_answers(processor, cases, case):
    conversation = cases[case]
    item = ConversationDataset([conversation], processor)[0]
    spoken = [turn.text for turn in conversation.turns if turn.role == "assistant"]
    assert answers(item, processor.tokenizer) == "".join(text + END for text in spoken)
    labelled = item["labels"] != IGNORED
    assert torch.equal(item["labels"][labelled], item["input_ids"][labelled])

    text = processor.apply_chat_template(messages_of(conversation.turns), tokenize=False)
    images = [[Image.open(path).convert("RGB") for path in conversation.images]] if conversation.images else None
    expected = processor(text=[text], images=images, return_tensors="pt")
    assert set(item) == {*expected, "labels"}
    for key, value in expected.items():
        per_token = key in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
        assert torch.equal(item[key], value[0] if per_token else value), key
    assert item["labels"].shape == item["attention_mask"].shape == item["input_ids"].shape


class RewritingProcessor(LlavaProcessor):
    def __call__(self, images=None, text=None, **options):
        return super().__call__(images=images, text=[one.replace("color", "shape") for one in text], **options)


class AppendingProcessor(LlavaProcessor):
    def __call__(self, images=None, text=None, **options):
        return super().__call__(images=images, text=[one + "\n" for one in text], **options)


@pytest.mark.parametrize("kind", [RewritingProcessor, AppendingProcessor])
@pytest.mark.parametrize("reports", [True, False])
def test_processor_that_changes_the_text_is_an_error(make_processor, cases, monkeypatch, kind, reports):
    monkeypatch.setattr(conversations, "_reports_replacements", lambda *_: reports)
    dataset = ConversationDataset([cases["one image"]], make_processor(kind=kind))
    with pytest.raises(LabelMismatchError, match=r"data, record 0: token \d+ from the processor is .* \(id \d+\), but"):
        dataset[0]


def test_first_differing_token_is_shown(make_processor, cases):
    dataset = ConversationDataset([cases["one image"]], make_processor(kind=RewritingProcessor))
    right = ConversationDataset([cases["one image"]], make_processor())[0]["input_ids"]
    with pytest.raises(LabelMismatchError) as caught:
        dataset[0]
    tokenizer = dataset.processor.tokenizer
    position = len(tokenizer.tokenize("<|turn|>user\n")) + 16 + len(tokenizer.tokenize("what"))
    expected = f"token {position} from the processor is 'Ġshape' (id {tokenizer.convert_tokens_to_ids('Ġshape')}), but"
    assert expected in str(caught.value)
    assert f"(id {right[position]}) there" in str(caught.value)


def test_token_across_the_border_of_an_answer_is_an_error(make_processor):
    template = "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endfor %}"
    processor = make_processor(template=template)
    assert len(processor.tokenizer.tokenize("abcd")) == 1
    start = ConversationDataset([record(("user", "ab"), ("assistant", "cd"))], processor)
    end = ConversationDataset([record(("user", "x "), ("assistant", "ab"), ("user", "cd"))], processor)
    with pytest.raises(LabelMismatchError, match="border of the answer 'cd' also holds 'ab' of another turn"):
        start[0]
    with pytest.raises(LabelMismatchError, match="border of the answer 'ab' also holds ' cd' of another turn"):
        end[0]
    space = ConversationDataset([record(("user", "ab "), ("assistant", "rectangle"))], processor)
    assert answers(space[0], processor.tokenizer).strip() == "rectangle</s>"


def test_answer_outside_of_the_vocabulary_is_an_error(make_processor):
    processor = make_processor()
    unknown = processor.tokenizer.decode
    dataset = ConversationDataset([record(("user", "a"), ("assistant", "blue"))], processor)
    processor.tokenizer.decode = lambda ids, **options: unknown(ids, **options).replace("blue", "<unk>")
    with pytest.raises(LabelMismatchError, match="the labels read '<unk></s>.n' instead of the answer 'blue'"):
        dataset[0]


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_labels_decode_to_exactly_the_answers(make_processor, data):
    processor = make_processor()
    words = st.text(st.characters(codec="utf-8", exclude_characters="<\0"), min_size=1, max_size=20).filter(str.strip)
    turns, spoken, marks = [], [], 0
    if data.draw(st.booleans()):
        turns.append(("system", data.draw(words)))
    for _ in range(data.draw(st.integers(1, 4))):
        here = data.draw(st.integers(0, 2))
        marks += here
        turns.append(("user", "<image>\n" * here + data.draw(words)))
        spoken.append(data.draw(words))
        turns.append(("assistant", spoken[-1]))
    conversation = Record("data, record 0", (Image.new("RGB", (20, 10)),) * marks, tuple(Turn(*turn) for turn in turns))
    dataset = ConversationDataset([conversation], processor)
    item = dataset[0]
    assert answers(item, processor.tokenizer) == "".join(text + END for text in spoken)
    assert (item["input_ids"] == processor.image_token_id).sum() == marks * 16
    assert dataset.lengths() == [len(item["input_ids"])]
