"""Whatever a tokenizer, a processor or Pillow raises for a record names it, and can be skipped; for all, it is one sentence."""

import struct

import pytest
import torch
from PIL import Image, ImageFile
from spoken import record

from evomoe.data.conversations import ConversationDataset
from evomoe.data.images import BadImageError, open_rgb
from evomoe.data.records import BadRecordError
from evomoe.evaluation.generation import Asked, Prompts
from evomoe.evaluation.pictures import FilePicture


class PanicException(BaseException):
    """What a panic in Rust becomes: pyo3 makes the real one when it first panics."""


ERRORS = [
    PanicException("byte index 3 is not a char boundary"),
    ValueError("absolute aspect ratio must be smaller than 200"), TypeError("unsupported operand"), RuntimeError("shape '[4]' is invalid"),
    OverflowError("too large"), UnicodeError("surrogates not allowed"), StopIteration(), ZeroDivisionError("division by zero"),
    RecursionError("too deep"), MemoryError(), NotImplementedError(), AttributeError("no such thing"), KeyError("pixel_values"),
    AssertionError(), struct.error("unpack requires 4 bytes"), Exception("PanicException: byte index 3"),
]  # fmt: skip
KINDS = pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
GOOD = record(("user", "hello"), ("assistant", "good"))


def bad(pictures=(), words: str = "cursed") -> object:
    marks = "<image>\n" * len(pictures)
    return record(("user", marks + words), ("assistant", "good"), images=pictures, where="data, record 1 (id 'b')")


def failing(original, error, is_bad):
    def call(self, *args, **options):
        if is_bad(args, options):
            raise error
        return original(self, *args, **options)

    return call


def cursed(args, options) -> bool:
    return "cursed" in str(options.get("text", args[:1]))


@KINDS
@pytest.mark.parametrize("part", ["tokenizer", "processor"])
def test_an_error_of_one_record_names_it_and_can_be_skipped(make_processor, monkeypatch, error, part, caplog):
    processor = make_processor()
    kind = type(processor.tokenizer if part == "tokenizer" else processor)
    monkeypatch.setattr(kind, "__call__", failing(kind.__call__, error, cursed))
    stopping, skipping = (ConversationDataset([GOOD, bad()], processor, on_bad_record=way) for way in ("stop", "skip"))
    for look in (lambda: stopping[1], stopping.check if part == "tokenizer" else lambda: stopping[1]):
        with pytest.raises(BadRecordError, match=r"data, record 1 \(id 'b'\): .* cannot process it: \S"):
            look()
    assert torch.equal(skipping[1]["input_ids"], stopping[0]["input_ids"])
    if part == "tokenizer":
        skipping.check()
        assert len(skipping) == 1 and "data, record 1 (id 'b')" in skipping.skipped[0]


@KINDS
def test_an_error_of_a_size_names_the_records_with_it(make_processor, monkeypatch, error, pictures):
    Image.new("RGB", (400, 1)).save(pictures / "line.png")
    processor = make_processor("qwen2_vl")
    kind = type(processor)
    monkeypatch.setattr(
        kind, "_get_num_multimodal_tokens",
        failing(kind._get_num_multimodal_tokens, error, lambda args, options: [1, 400] in options["image_sizes"]),
    )  # fmt: skip
    monkeypatch.setattr(
        kind, "__call__", failing(kind.__call__, error, lambda args, options: "400x1" in str(options.get("images")))
    )
    dataset = ConversationDataset(
        [record(("user", "<image>\nwhat?"), ("assistant", "red"), images=[pictures / "red.png"]), bad([pictures / "line.png"])],
        processor, on_bad_record="skip",
    )  # fmt: skip
    dataset.check()
    if isinstance(error, AttributeError | TypeError | NotImplementedError):  # it cannot report, and a blank one is measured
        assert len(dataset) == 2
        assert torch.equal(dataset[1]["input_ids"], dataset[0]["input_ids"])  # found when the picture is read
    else:
        assert len(dataset) == 1
        assert (
            "data, record 1 (id 'b'): " in dataset.skipped[0]
            and "cannot process a picture of 400 x 1 pixels: " in dataset.skipped[0]
        )


def test_a_picture_that_qwen_refuses_is_named_before_training(make_processor, pictures):
    Image.new("RGB", (400, 1)).save(pictures / "line.png")
    dataset = ConversationDataset([GOOD, bad([pictures / "line.png"])], make_processor("qwen2_vl"))
    with pytest.raises(
        BadRecordError, match=r"record 1 \(id 'b'\): .* cannot process a picture of 400 x 1 pixels: absolute aspect ratio"
    ):
        dataset.check()


def test_a_processor_without_a_patch_size_is_one_sentence(make_processor, pictures):
    processor = make_processor()
    processor.patch_size = None
    dataset = ConversationDataset(
        [GOOD, bad([pictures / "red.png"]), bad([pictures / "wide.png"])], processor, on_bad_record="skip"
    )
    with pytest.raises(
        ValueError, match=r"^LlavaProcessor cannot process a picture of .* pixels: [^\n]*; it can process no picture"
    ):
        dataset.check()


def test_what_is_raised_for_all_is_one_sentence(make_processor, monkeypatch):
    processor = make_processor()
    kind = type(processor.tokenizer)
    dataset = ConversationDataset([GOOD] * 30, processor)
    monkeypatch.setattr(
        kind, "__call__", failing(kind.__call__, RuntimeError("it is broken\nat line 3"), lambda args, options: True)
    )
    with pytest.raises(BadRecordError) as caught:
        dataset.check()
    assert "all 30 records are bad: " in str(caught.value) and "cannot process it: it is broken" in str(caught.value)
    assert "\n" not in str(caught.value)


@KINDS
def test_an_error_of_pillow_names_the_picture(error, pictures, monkeypatch):
    def fail(*args):
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(BadImageError, match=r"image .*red.png cannot be decoded: \S"):
        open_rgb(str(pictures / "red.png"))


@KINDS
def test_an_error_of_a_question_names_it(make_processor, monkeypatch, error, pictures):
    processor = make_processor()
    picture = FilePicture(str(pictures / "red.png"))
    asked = [
        Asked(f"question {name!r}", record(("user", "<image>\n" + words)).turns, (picture,))
        for name, words in (("a", "hello"), ("b", "cursed"), ("c", "hello"))
    ]
    prompts = Prompts(asked, processor, batch_size=3)
    monkeypatch.setattr(type(processor), "__call__", failing(type(processor).__call__, error, cursed))
    with pytest.raises(ValueError, match=r"^question 'b': LlavaProcessor cannot process it: \S"):
        prompts[0]
