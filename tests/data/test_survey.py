"""What is known of records before training, without decoding a picture: lengths, cuts, bad ones."""

import pytest
import torch
from spoken import record

from evomoe.data import conversations
from evomoe.data.conversations import ConversationDataset
from evomoe.data.records import BadRecordError


def tolerance(processor) -> int:
    """The tokens by which the length of a picture may be off: Gemma 3 and Idefics 2 set it apart by white space."""
    return 1 if type(processor).__name__ in ("Gemma3Processor", "Idefics2Processor") else 0


def test_long_text_is_cut_and_counted(processor, cases):
    long = record(("user", "<image>\nwhat?"), ("assistant", "blue " * 50), images=cases["one image"].images)
    whole = ConversationDataset([long, cases["no image"]], processor)
    size = len(whole[0]["input_ids"])
    dataset = ConversationDataset([long, cases["no image"]], processor, max_length=size - 30)
    item = dataset[0]
    for key in ("input_ids", "attention_mask", "labels"):
        assert torch.equal(item[key], whole[0][key][: size - 30])
    assert torch.equal(item["pixel_values"], whole[0]["pixel_values"])
    assert whole.cut == 0 and dataset.cut == 1
    assert ConversationDataset([long], processor, max_length=whole.lengths()[0]).cut == 0
    assert dataset.lengths()[0] == size - 30
    assert abs(whole.lengths()[0] - size) <= tolerance(processor)


def test_cut_through_a_picture_or_before_the_answer_is_an_error(make_processor, pictures):
    image = pictures / "red.png"
    late_image = record(("user", "hi"), ("assistant", "ho"), ("user", "<image>"), ("assistant", "it"), images=[image])
    with pytest.raises(BadRecordError, match=r"it has \d+ tokens, and cutting it at max_length 20 would cut through"):
        ConversationDataset([late_image], make_processor(), max_length=20)[0]
    with pytest.raises(BadRecordError, match="max_length 20 would leave no answer to learn"):
        ConversationDataset([record(("user", "why " * 40), ("assistant", "so"))], make_processor(), max_length=20)[0]


def test_check_finds_before_training_what_training_would_refuse(processor, cases):
    image, filler = cases["one image"].images, "why " * 60
    bad = {
        1: record(("user", filler), ("assistant", "so"), where="d, record 1"),
        3: record(
            ("user", "a"), ("assistant", "b"), ("user", filler + "<image>"), ("assistant", "c"), images=image, where="d, record 3"
        ),
    }
    good = {
        0: cases["one image"],
        2: record(("user", "<image>what?"), ("assistant", "blue " * 60), images=image, where="d, record 2"),
    }
    records = [(bad | good)[number] for number in range(4)]
    max_length = len(ConversationDataset([good[0]], processor)[0]["input_ids"]) + 30
    dataset = ConversationDataset(records, processor, max_length=max_length)
    for number in bad:
        with pytest.raises(BadRecordError, match="cutting it at max_length"):
            dataset[number]
    with pytest.raises(BadRecordError, match="2 of 4 records are bad") as caught:
        dataset.check()
    assert "d, record 1: it has" in str(caught.value) and "would leave no answer to learn" in str(caught.value)
    assert "d, record 3: it has" in str(caught.value) and "would cut through its pictures" in str(caught.value)
    skipping = ConversationDataset(records, processor, max_length=max_length, on_bad_record="skip")
    skipping.check()
    assert len(skipping) == len(skipping.lengths()) == 2 and skipping.cut == 1
    assert [message.split(":")[0] for message in skipping.skipped] == ["d, record 1", "d, record 3"]
    assert torch.equal(skipping[1]["input_ids"], dataset[2]["input_ids"])


ONE_PICTURE = (("user", "hi <image> there, " + "why " * 9), ("assistant", "ho"))


TWO_PICTURES = (("user", "hi <image> there"), ("assistant", "ho"), ("user", "<image>"), ("assistant", "it"))


@pytest.mark.parametrize(("turns", "expected"), [
    (ONE_PICTURE, {"good", "cut through its pictures", "leave no answer to learn"}),
    (TWO_PICTURES, {"good", "cut through its pictures"}),
])  # fmt: skip
def test_check_agrees_with_the_cut_token_by_token(make_processor, cases, turns, expected):
    """For every max_length: what `check` lets pass, training can use, and nothing else."""
    pictures = sum(text.count("<image>") for _, text in turns)
    conversation = record(*turns, images=cases["one image"].images * pictures)
    whole = len(ConversationDataset([conversation], make_processor())[0]["input_ids"])
    verdicts = []
    for max_length in range(1, whole + 2):
        dataset = ConversationDataset([conversation], make_processor(), max_length=max_length)
        verdict = []
        for attempt in (dataset.check, lambda dataset=dataset: dataset[0]):
            try:
                attempt()
                verdict.append("good")
            except BadRecordError as error:
                verdict.append(next(phrase for phrase in expected if phrase in str(error)))
        verdicts.append(tuple(verdict))
    assert all(checked == used for checked, used in verdicts)
    assert {checked for checked, _ in verdicts} == expected


def test_check_finds_labels_that_cannot_be_placed(make_processor):
    template = "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endfor %}"
    fine = record(("user", "ab "), ("assistant", "rectangle"))
    joined = record(("user", "ab"), ("assistant", "cd"), where="d, record 1")
    dataset = ConversationDataset([fine, joined], make_processor(template=template))
    with pytest.raises(BadRecordError, match="d, record 1: a token at the border of the answer 'cd' also holds 'ab'"):
        dataset.check()


def test_lengths_are_right_and_decode_nothing(processor, cases, monkeypatch):
    dataset = ConversationDataset(list(cases.values()), processor)
    expected = [len(dataset[index]["input_ids"]) for index in range(len(dataset))]
    monkeypatch.setattr(conversations, "open_rgb", lambda _: pytest.fail("a picture was decoded"))
    for length, real, conversation in zip(dataset.lengths(), expected, dataset.records, strict=True):
        assert abs(length - real) <= tolerance(processor) * len(conversation.images)


def test_check_and_lengths_at_a_picture_that_has_gone(make_processor, cases, pictures):
    (pictures / "wide.png").unlink()
    records = [cases["one image"], cases["several images"]]
    with pytest.raises(BadRecordError, match="data, record 0: image .*wide.png does not exist"):
        ConversationDataset(records, make_processor()).check()
    dataset = ConversationDataset(records, make_processor(), on_bad_record="skip")
    assert dataset.lengths() == [len(dataset[0]["input_ids"]), 1]
