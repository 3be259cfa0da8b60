"""Records become items: messages, pictures, what is kept, what a bad record does."""

import logging
import os

import pytest
import torch
from spoken import record
from torch.utils.data import DataLoader
from transformers import LlavaProcessor

from evomoe.data import conversations
from evomoe.data.conversations import ConversationDataset, messages_of
from evomoe.data.images import Shape, open_rgb
from evomoe.data.records import BadRecordError, Turn


def test_messages_keep_the_order_of_the_marks():
    turns = (Turn("user", "<image>\nfirst <image> second\n<image>\n\n<image>"), Turn("assistant", "a\nb\n"))
    image = {"type": "image"}
    assert messages_of(turns) == [
        {
            "role": "user",
            "content": [image, {"type": "text", "text": "first "}, image, {"type": "text", "text": " second"}] + [image, image],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "a\nb\n"}]},
    ]


@pytest.fixture
def broken(pictures):
    """A picture that only decoding finds out about."""
    content = bytearray((pictures / "red.png").read_bytes())
    content[len(content) // 2] ^= 255
    (pictures / "broken.png").write_bytes(content)
    images = [pictures / "broken.png"]
    return record(("user", "<image>"), ("assistant", "x"), images=images, where="train.json, record 7")


def test_undecodable_picture_stops_or_is_replaced(make_processor, cases, broken, caplog):
    good = [cases["one image"], cases["no image"]]
    with pytest.raises(BadRecordError, match="train.json, record 7: image .*broken.png cannot be decoded"):
        ConversationDataset([good[0], broken, good[1]], make_processor())[1]
    dataset = ConversationDataset([good[0], good[1], broken], make_processor(), on_bad_record="skip")
    for _ in range(3):
        assert torch.equal(dataset[2]["input_ids"], dataset[0]["input_ids"])
    assert caplog.text.count("train.json, record 7") == 1
    with pytest.raises(BadRecordError, match="there is no good record"):
        ConversationDataset([broken, broken], make_processor(), on_bad_record="skip")[0]


class RefusingProcessor(LlavaProcessor):
    def __call__(self, *args, **options):
        raise ValueError("this one not")


def test_processor_error_names_the_record(make_processor, cases):
    dataset = ConversationDataset([cases["no image"]], make_processor(kind=RefusingProcessor))
    with pytest.raises(BadRecordError, match="data, record 0: RefusingProcessor cannot process it: this one not"):
        dataset[0]


def test_options_are_checked(make_processor, cases):
    one = [cases["no image"]]
    with pytest.raises(ValueError, match="^on_bad_record: there is no .drop."):
        ConversationDataset(one, make_processor(), on_bad_record="drop")
    with pytest.raises(ValueError, match="max_length: 0 must be at least 1"):
        ConversationDataset(one, make_processor(), max_length=0)
    with pytest.raises(ValueError, match="records: there are none"):
        ConversationDataset([], make_processor())
    with pytest.raises(IndexError):
        ConversationDataset(one, make_processor())[1]


def test_workers_decode(make_processor, cases, monkeypatch):
    dataset = ConversationDataset([cases["one image"]] * 3, make_processor())
    seen = []
    monkeypatch.setattr(conversations, "open_rgb", lambda path: seen.append(os.getpid()) or open_rgb(path))
    loaded = list(DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="fork"))
    assert seen == [] and len(loaded) == 3
    assert torch.equal(loaded[0]["pixel_values"], dataset[0]["pixel_values"])


def test_items_can_be_kept(processor, cases, monkeypatch):
    plain, dataset = (ConversationDataset(list(cases.values()), processor, keep=keep) for keep in (False, True))
    first = dataset[1]
    first.pop("labels")  # what a caller does to an item is its own affair
    monkeypatch.setattr(dataset, "encode", lambda record: pytest.fail("it was made a second time"))
    for number in (1, 1 - len(dataset)):
        again = dataset[number]
        assert again.keys() == plain[1].keys() and all(torch.equal(again[name], value) for name, value in plain[1].items())
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_nothing_is_logged_for_good_records(make_processor, cases, caplog):
    with caplog.at_level(logging.WARNING, logger="evomoe"):
        assert len(list(ConversationDataset(list(cases.values()), make_processor()))) == 4
    assert not [entry for entry in caplog.records if entry.name.startswith("evomoe")]


def test_pictures_are_padded_as_in_evaluation_where_they_would_be_cropped(processor, cases, tmp_path):
    wide = cases["several images"].images[1]
    Shape(processor, "pad").fit(open_rgb(wide)).save(tmp_path / "padded.png")

    def dataset(image, aspect) -> ConversationDataset:
        asked = record(("user", "<image>\nwhat color?"), ("assistant", "a blue one"), images=[image])
        return ConversationDataset([asked], processor, image_aspect=aspect)

    padded, expected = dataset(wide, "pad"), dataset(tmp_path / "padded.png", "keep")
    item = padded[0]
    assert item.keys() == expected[0].keys() and all(torch.equal(item[name], value) for name, value in expected[0].items())
    assert padded.lengths() == expected.lengths()
    kept, automatic = dataset(wide, "keep")[0]["pixel_values"], dataset(wide, "auto")[0]["pixel_values"]
    assert kept.shape != item["pixel_values"].shape or not torch.equal(kept, item["pixel_values"])
    assert torch.equal(automatic, kept)  # none of these processors crops
