import pytest
import torch
from PIL import Image
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from evomoe.data.conversations import Collator, ConversationDataset
from evomoe.data.labels import IGNORED
from evomoe.data.records import Record, Turn


def picture(width: int, height: int) -> Image.Image:
    return Image.effect_noise((width, height), 90).convert("RGB")


def conversation(*images: Image.Image, answer: str = "a shape") -> Record:
    # Qwen2-VL's positions need something between two pictures; its own template brings marks of its own.
    question = "see <image> " * len(images) + "what?"
    return Record("data, record 0", images, (Turn("user", question), Turn("assistant", answer)))


@pytest.fixture
def records() -> list[Record]:
    return [
        conversation(picture(64, 48)),
        conversation(answer="no picture here, a longer answer"),
        conversation(picture(120, 40), picture(30, 60), answer="two"),
    ]


@pytest.mark.parametrize("side", ["right", "left"])
def test_per_token_tensors_are_padded(make_processor, records, side):
    processor = make_processor("qwen2_vl")
    items = [item for item in ConversationDataset(records, processor)]
    batch = Collator(processor, padding_side=side, pad_to_multiple_of=16)(items)
    width = batch["input_ids"].shape[1]
    longest = max(len(item["input_ids"]) for item in items)
    assert width % 16 == 0 and longest <= width < longest + 16
    padding = {"input_ids": processor.tokenizer.pad_token_id, "labels": IGNORED, "attention_mask": 0}
    for key in ("input_ids", "attention_mask", "labels", "mm_token_type_ids"):
        assert batch[key].shape == (3, width) and batch[key].dtype == torch.int64
        for row, item in zip(batch[key], items, strict=True):
            values = item.get(key, torch.zeros(len(item["input_ids"])))
            own, rest = (row[: len(values)], row[len(values) :])
            if side == "left":
                own, rest = row[width - len(values) :], row[: width - len(values)]
            assert torch.equal(own, values)
            assert (rest == padding.get(key, 0)).all()


def test_missing_token_types_are_text(make_processor, records):
    processor = make_processor("qwen2_vl")
    items = [item for item in ConversationDataset(records, processor)]
    assert items[1].pop("mm_token_type_ids").sum() == 0
    batch = Collator(processor)(items)
    assert batch["mm_token_type_ids"].shape == batch["input_ids"].shape
    assert (batch["mm_token_type_ids"][1] == 0).all() and (batch["mm_token_type_ids"][0] == 1).any()


def test_vision_tensors_are_joined(make_processor, records):
    qwen = make_processor("qwen2_vl")
    items = [item for item in ConversationDataset(records, qwen)]
    batch = Collator(qwen)(items)
    assert torch.equal(batch["pixel_values"], torch.cat([items[0]["pixel_values"], items[2]["pixel_values"]]))
    assert torch.equal(batch["image_grid_thw"], torch.cat([items[0]["image_grid_thw"], items[2]["image_grid_thw"]]))

    llava = make_processor("llava")
    items = [item for item in ConversationDataset(records, llava)]
    assert Collator(llava)(items)["pixel_values"].shape == (3, 3, 32, 32)
    assert set(Collator(llava)([items[1], items[1]])) == {"input_ids", "attention_mask", "labels"}


def test_numbers_of_pictures_are_padded(make_processor, records):
    processor = make_processor("idefics3")
    items = [item for item in ConversationDataset(records, processor)]
    batch = Collator(processor)(items)
    counts = [item["pixel_values"].shape[1] for item in (items[0], items[2])]
    assert counts[0] != counts[1]
    assert batch["pixel_values"].shape == (2, max(counts), 3, 32, 32)
    assert batch["pixel_attention_mask"].shape == (2, max(counts), 32, 32)
    for row, item, count in zip(batch["pixel_values"], (items[0], items[2]), counts, strict=True):
        assert torch.equal(row[:count], item["pixel_values"][0])
        assert (row[count:] == 0).all()


def test_unjoinable_items_and_unknown_side_are_named(make_processor):
    ids = torch.zeros(2, dtype=torch.long)
    items = [{"input_ids": ids, "extra": torch.zeros(shape)} for shape in ((1, 2), (1, 2, 3))]
    with pytest.raises(ValueError, match=r"extra: items with \[2, 3\] dimensions cannot be joined"):
        Collator(make_processor())(items)
    with pytest.raises(ValueError, match="padding_side: 'top'"):
        Collator(make_processor(), padding_side="top")


def test_tokenizer_without_padding_token(make_processor, records):
    processor = make_processor()
    items = [ConversationDataset([record], processor)[0] for record in records[:2]]
    processor.tokenizer.pad_token = None
    batch = Collator(processor)(items)
    assert (batch["input_ids"][batch["attention_mask"] == 0] == processor.tokenizer.eos_token_id).all()


TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def tiny_llava(processor) -> LlavaForConditionalGeneration:
    config = LlavaConfig(
        vision_config={"model_type": "siglip_vision_model", **VISION},
        text_config={"model_type": "llama", **TEXT},
        image_token_id=processor.image_token_id,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config)


def tiny_idefics3(processor) -> Idefics3ForConditionalGeneration:
    config = Idefics3Config(
        vision_config=VISION,
        text_config={"model_type": "llama", **TEXT},
        image_token_id=processor.image_token_id,
        scale_factor=2,
        pad_token_id=0,
    )
    return Idefics3ForConditionalGeneration(config)


def tiny_qwen2_vl(processor) -> Qwen2VLForConditionalGeneration:
    config = Qwen2VLConfig(
        vision_config={"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 2},
        text_config={
            **TEXT,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
        },
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
    )
    return Qwen2VLForConditionalGeneration(config)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    ("family", "make_model"), [("llava", tiny_llava), ("idefics3", tiny_idefics3), ("qwen2_vl", tiny_qwen2_vl)]
)
def test_model_gives_each_record_of_a_batch_what_it_gives_it_alone(make_processor, records, family, make_model, side):
    torch.manual_seed(0)
    processor = make_processor(family)
    model = make_model(processor).eval()
    collate = Collator(processor, padding_side=side)
    items = [item for item in ConversationDataset(records, processor)]
    with torch.no_grad():
        together = collate(items)
        logits = model(**together).logits
        for number, item in enumerate(items):
            alone = model(**collate([item])).logits[0]
            real = together["attention_mask"][number].bool()
            torch.testing.assert_close(logits[number][real], alone, rtol=1e-4, atol=1e-5)
