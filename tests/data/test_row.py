"""Fields that change what a record means are served or refused; others are listed once."""

import base64
import io
import math

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from spoken import answers, record
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from evomoe.data.conversations import ConversationDataset
from evomoe.data.images import open_rgb
from evomoe.data.records import BadRecordError, load_records
from evomoe.data.row import read_row
from evomoe.data.turns import Turn

TALK = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "red"}]


def refusal(row: dict) -> str:
    with pytest.raises(BadRecordError) as caught:
        load_records([row])
    return str(caught.value)


@pytest.mark.parametrize("field", ["sound", "audio", "audios", "video_path", "tools", "functions", "documents"])
@pytest.mark.parametrize("level", ["record", "turn", "dataset"])
def test_what_would_change_the_meaning_is_refused(field, level):
    turns = [TALK[0] | ({field: ["x"]} if level == "turn" else {}), TALK[1]]
    row = {"messages": turns} | ({} if level == "turn" else {field: ["x"]})
    data = datasets.Dataset.from_list([row]) if level == "dataset" else [row]
    with pytest.raises(BadRecordError, match=f"record 0.* has the field '{field}'; "):
        load_records(data)


@pytest.mark.parametrize("nothing", [None, "", [], {}, math.nan])
@pytest.mark.parametrize("field", ["video", "image", "system", "tools", "imgae", "id"])
def test_what_is_empty_says_nothing(field, nothing):
    records = load_records([{"messages": TALK, field: nothing}])
    assert records[0].turns == (Turn("user", "what?"), Turn("assistant", "red")) and records[0].images == () and not records.notes
    assert records[0].where == "the given list, record 0"


def test_pandas_nothing_is_nothing_at_every_level(tmp_path):
    (tmp_path / "red.png").write_bytes(encoded("red"))
    part = {"type": "image", "path": "red.png", "text": math.nan, "index": math.nan, "url": math.nan}
    talk = [
        {
            "role": "user",
            "content": [part, {"type": "text", "text": "what?", "path": math.nan}],
            "from": math.nan,
            "weight": math.nan,
        },
        {"role": "assistant", "content": math.nan, "value": "red", "tool_calls": math.nan},
    ]
    (record,) = load_records([{"messages": talk, "conversations": math.nan, "image": math.nan, "id": math.nan}], tmp_path)
    assert record.turns == (Turn("user", "<image>what?"), Turn("assistant", "red")) and len(record.images) == 1


@pytest.mark.parametrize("form", ["list", "json", "dataset"])
def test_fields_that_nobody_reads_are_listed_once(form, write_json, make_processor):
    rows = [{"messages": TALK, "imgae": "a.png", "source": "coco"}, {"messages": TALK, "imgae": "b.png", "source": "coco"}]
    data = {"list": lambda: rows, "json": lambda: write_json(rows), "dataset": lambda: datasets.Dataset.from_list(rows)}[form]()
    records = load_records(data)
    (note,) = records.notes
    assert note.endswith("fields that nobody reads: 'imgae' (2 records; is 'image' meant?), 'source' (2 records).")
    assert ConversationDataset(records, make_processor()).notes == [note]
    talk = [{"role": "user", "content": [{"type": "text", "text": "what?", "min_pixels": 4}], "name": "Ann"}, TALK[1]]
    (note,) = load_records([{"messages": talk}]).notes
    assert note == "the given list: fields that nobody reads: a turn's 'name' (1 record), a part's 'min_pixels' (1 record)."


@pytest.mark.parametrize("field", ["system", "system_prompt"])
def test_a_system_prompt_of_the_record_is_its_first_turn(field):
    assert load_records([{"messages": TALK, field: "be brief"}])[0].turns[0] == Turn("system", "be brief")
    spoken = [{"role": "system", "content": "be brief"}, *TALK]
    assert len(load_records([{"messages": spoken, field: "be brief"}])[0].turns) == 3
    assert "it has two system prompts" in refusal({"messages": spoken, field: "be long"})
    assert f"'{field}' must be a string, not a list" in refusal({"messages": TALK, field: ["x"]})


@pytest.mark.parametrize(
    ("said", "learned"), [({"loss": False}, False), ({"weight": 0}, False), ({"train": False}, False), ({"weight": 1.0}, True)]
)
def test_a_turn_says_whether_it_is_learned(said, learned, make_processor):
    talk = [TALK[0], TALK[1] | said, {"role": "user", "content": "sure?"}, {"role": "assistant", "content": "yes", "loss": True}]
    records = load_records([{"messages": talk}])
    processor = make_processor()
    taught = answers(ConversationDataset(records, processor)[0], processor.tokenizer)
    assert taught == ("red</s>\n" if learned else "") + "yes</s>\n"


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({}, {"weight": 0.5}, "turn 1 has weight 0.5; an answer is learned"),
        ({}, {"loss": "no"}, "turn 1 has loss 'no'; an answer is learned"),
        ({"loss": True}, {}, "turn 0 is the user's and has loss True; only answers are learned"),
        ({}, {"loss": False, "weight": 1}, "turn 1 has loss and weight, which say different things"),
        ({}, {"loss": False}, "none of its answers is to be learned"),
        ({"reasoning_content": "hm"}, {}, "turn 0 has the field 'reasoning_content'; only an answer has reasoning"),
        ({}, {"reasoning": "a", "thinking": "b"}, "the reasoning of an answer is one text"),
        ({"images": ["a.png"]}, {}, "turn 0 has the field 'images'; put pictures into the record's 'images'"),
        ({}, {"tool_calls": [{"name": "f"}]}, "turn 1 has the field 'tool_calls'; calls of tools are not learned"),
    ],
)
def test_what_a_turn_cannot_say_is_refused(first, second, message):
    assert message in refusal({"messages": [TALK[0] | first, TALK[1] | second]})


def test_reasoning_is_rendered_or_refused(make_processor):
    thought = load_records([{"messages": [TALK[0], TALK[1] | {"reasoning_content": "it glows"}]}])
    with pytest.raises(BadRecordError, match="the chat template loses the reasoning of the last answer: 'it glows'"):
        ConversationDataset(thought, make_processor())
    template = (
        "{% for m in messages %}{{ m.role }}:{% if m.thinking %}({{ m.thinking }}){% endif %}{{ m.content }}</s>{% endfor %}"
    )
    processor = make_processor(template=template + "{% if add_generation_prompt %}assistant:{% endif %}")
    assert answers(ConversationDataset(thought, processor)[0], processor.tokenizer) == "(it glows)red</s>"


def encoded(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 7), colour).save(file, "PNG")
    return file.getvalue()


BASE64 = base64.b64encode(encoded("red")).decode()


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "red.png"},
        {"type": "image", "path": "red.png"},
        {"type": "image", "url": "red.png", "text": None, "index": None},
        {"type": "image", "url": "file://red.png"},
        {"type": "image_url", "image_url": {"url": "red.png", "detail": "low"}},
        {"type": "image_url", "image_url": "data:image/png;base64," + BASE64},
        {"type": "image", "image": "data:image/png;base64," + BASE64},
        {"type": "image", "image": {"bytes": encoded("red"), "path": None}},
        {"type": "image", "image": Image.new("RGB", (9, 7), "red")},
        {"type": "image", "bytes": encoded("red")},
    ],
    ids=lambda part: next(iter([*part][1:])),
)
def test_a_part_may_hold_its_picture(part, tmp_path):
    (tmp_path / "red.png").write_bytes(encoded("red"))
    talk = [{"role": "user", "content": [part, {"type": "text", "text": "what?"}]}, TALK[1]]
    (record,) = load_records([{"messages": talk}], tmp_path)
    assert record.turns[0].text == "<image>what?"
    assert [open_rgb(picture).getpixel((0, 0)) for picture in record.images] == [(255, 0, 0)]


def shown(*parts: dict, **fields) -> dict:
    return {"messages": [{"role": "user", "content": [*parts]}, TALK[1]], **fields}


def test_an_index_names_a_picture_of_the_record(pictures):
    row = shown(
        {"type": "image", "index": 1},
        {"type": "image", "index": 0},
        {"type": "image", "index": 1},
        images=["red.png", "wide.png"],
    )
    (record,) = load_records([row], pictures)
    assert [name.rpartition("/")[2] for name in record.images] == ["wide.png", "red.png", "wide.png"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            shown({"type": "image", "index": 2}, images=["red.png"]),
            "the parts show the images [2], and the record has 1 image, from 0",
        ),
        (
            shown({"type": "image", "index": 0}, {"type": "image"}, images=["red.png", "wide.png"]),
            "the parts show the images [0]",
        ),
        (shown({"type": "image", "index": 0}, images=["red.png", "wide.png"]), "no part shows image 1 of the record's 2"),
        (
            shown({"type": "image", "image": "red.png"}, images=["red.png"]),
            "in the parts of its turns or in a field of its own, not in both",
        ),
        (shown({"type": "image", "image": "red.png"}, {"type": "image"}), "in the parts of its turns or in a field of its own"),
        (shown({"type": "image", "image": "red.png", "path": "red.png"}), "a part names its image more than once"),
        (shown({"type": "image", "url": "https://x.org/a.png"}), "the image https://x.org/a.png lies in the net; save it"),
        (shown({"type": "text", "text": "a", "image": "red.png"}), "neither a text nor an image"),
        (shown({"type": "audio", "audio": "a.mp3"}), "neither a text nor an image or a video: {'type': 'audio'"),
        (shown({"type": "image", "image": "data:image/png;base64,%%%"}), "is not a picture in base64"),
    ],
)
def test_pictures_of_parts_that_cannot_be_are_refused(row, message, pictures):
    with pytest.raises(BadRecordError) as caught:
        load_records([row], pictures)
    assert message in str(caught.value)


@given(
    length=st.integers(0, 60_000),
    prefix=st.sampled_from(["", "data:image/png;base64,", "/9j/"]),
    at=st.sampled_from(["image", "part", "odd"]),
)
def test_a_picture_in_base64_is_never_printed_whole(length, prefix, at):
    text = prefix + "QUJD" * (length // 4) or "x"
    row = {"messages": TALK, "image": text}
    if at == "part":
        row = shown({"type": "image", "image": text})
    elif at == "odd":
        row = shown({"type": "picture", "picture": text})
    with pytest.raises(BadRecordError) as caught:
        load_records([row])
    assert len(str(caught.value)) < 700


def test_a_picture_in_base64_is_read(tmp_path):
    noise = io.BytesIO()
    Image.effect_noise((80, 80), 90).save(noise, "PNG")
    assert len(noise.getvalue()) > 4096
    row = shown({"type": "image"}, image=base64.b64encode(noise.getvalue()).decode())
    assert load_records([row])[0].images[0].size == (80, 80)


def test_the_mark_of_a_picture_in_an_answer_is_a_word_where_the_model_has_another(make_processor):
    row = {"messages": [TALK[0], {"role": "assistant", "content": "write <image> there"}]}
    records = load_records([row])
    with pytest.raises(
        BadRecordError, match=r"record 0: turn 1 \(assistant\) holds '<image>', which the model reads as a control token"
    ):
        ConversationDataset(records, make_processor())
    words = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(["?", "what", "write", "<", "image", ">", "there"])}, "?")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="?", pad_token="?")
    tokenizer.chat_template = "{% for m in messages %} {{ m.content }} {% endfor %}"
    ids = ConversationDataset(records, tokenizer)[0]["labels"]
    assert tokenizer.decode(ids[ids >= 0]) == "write < image > there ?"


CONTROL = ["</s>", "<|turn|>", "<|image_pad|>", "<pad>", "<row_1_col_1>"]


@pytest.mark.parametrize("words", [*CONTROL, "a\0b", "half \ud83d", "\udc00"])
@pytest.mark.parametrize("place", ["user", "assistant", "system", "thinking"])
def test_what_is_no_plain_text_is_refused_and_can_be_skipped(words, place, make_processor):
    says = {"user": "hello", "assistant": "good", "system": "be brief", "thinking": ""} | {place: f"well {words} then"}
    turns = (Turn("system", says["system"]), Turn("user", says["user"]), Turn("assistant", says["assistant"], says["thinking"]))
    bad = record().__class__("data, record 1", (), turns)
    good = record(("user", "hello"), ("assistant", "good"))
    dataset = ConversationDataset([good, bad], make_processor(), on_bad_record="skip")
    dataset.check()
    (said,) = dataset.skipped
    assert said.startswith(
        f"data, record 1: turn {('system', 'user', 'assistant', 'thinking').index(place) - (place == 'thinking')}"
    )
    assert any(part in said for part in ("as a control token", "holds a null character", "holds half a character"))
    assert len(dataset) == 1


@pytest.mark.parametrize("path", ["a\ud83d.png", "\udcff.png", "\ud800/a.png"])
def test_a_path_that_no_disk_has_is_refused_and_can_be_written_down(path, tmp_path):
    good = {"messages": TALK}
    bad = {"messages": [{"role": "user", "content": "<image>"}, TALK[1]], "image": path, "id": path}
    (said,) = load_records([good, bad], tmp_path, on_bad_record="skip").skipped
    assert "record 1" in said and ("holds half a character" in said or "does not exist" in said)
    said.encode()


@pytest.mark.parametrize(("field", "value"), [("weight", 0), ("weight", 0.5), ("loss", False), ("train", False)])
def test_what_a_whole_record_says_of_its_weight_is_not_passed_over(field, value):
    turns = [{"role": "user", "content": "what ?"}, {"role": "assistant", "content": "red"}]
    with pytest.raises(BadRecordError, match=f"it has {field} {value!r} of the whole record; give it to the turns"):
        read_row({"messages": turns, field: value})
    assert read_row({"messages": turns, field: 1}).unread == [f"'{field}'"]
