import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import datasets
import pytest
from PIL import Image
from rows import llava

from evomoe.data.images import open_rgb
from evomoe.data.records import BadRecordError, Record, Turn, load_records


def turns(*pairs) -> list[dict]:
    return [{"from": role, "value": text} for role, text in pairs]


def test_llava_json_is_read(pictures, write_json):
    rows = [
        llava(),
        llava(["red.png", "green.jpg"], "<image><image> which?"),
        llava(None, "hello", id=7),
        {"conversations": turns(("system", "be brief"), ("human", "hi"), ("gpt", "ho"), ("human", "ha"), ("gpt", "hu"))},
    ]
    records = load_records(write_json(rows), pictures)
    assert len(records) == 4 and records.skipped == []
    assert records[0] == Record(
        "train.json, record 0 (id 'abc')",
        (str(pictures / "red.png"),),
        (Turn("user", "<image>\nwhat is it?"), Turn("assistant", "a shape")),
    )
    assert records[1].images == (str(pictures / "red.png"), str(pictures / "green.jpg"))
    assert records[2].images == () and records[2].where == "train.json, record 2 (id 7)"
    assert [turn.role for turn in records[3].turns] == ["system", "user", "assistant", "user", "assistant"]
    assert records[-1].where == "train.json, record 3"
    assert [record.where for record in records[1:3]] == [records[1].where, records[2].where]
    assert len(records) == 4 and not records.skipped


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "image"}, {"type": "text", "text": "what?"}],
        [{"type": "image", "text": None}, {"type": "text", "text": "what?"}],
        "<image>what?",
    ],
)
def test_messages_are_read(pictures, content):
    rows = [
        {
            "images": ["red.png"],
            "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "it"}],
        }
    ]
    records = load_records(rows, pictures)
    assert records[0].turns == (Turn("user", "<image>what?"), Turn("assistant", "it"))
    assert records[0].images == (str(pictures / "red.png"),)


def test_json_lines_are_read_past_blank_lines(pictures, write_json):
    path = write_json([llava(id="first"), llava(id="second")], "train.jsonl")
    path.write_text(path.read_text().replace("\n", "\n\n") + "\n")
    assert [r.where for r in load_records(path, pictures)] == [
        "train.jsonl, record 0 (id 'first')",
        "train.jsonl, record 1 (id 'second')",
    ]


def test_relative_paths_start_at_the_data_file(pictures, write_json):
    assert load_records(write_json([llava("pictures/red.png")]))[0].images == (str(pictures / "red.png"),)
    with pytest.raises(BadRecordError, match="leaves the image folder"):
        load_records(write_json([llava("../outside.png")]))


def test_absolute_paths_need_to_lie_in_the_root(pictures, tmp_path, write_json):
    outside = tmp_path / "outside.png"
    Image.new("RGB", (8, 8)).save(outside)
    inside = str(pictures / "red.png")
    assert load_records(write_json([llava(inside)]), pictures)[0].images == (inside,)
    assert load_records(write_json([llava(str(outside))]))[0].images == (str(outside),)
    with pytest.raises(BadRecordError, match="leaves the image folder"):
        load_records(write_json([llava(str(outside))]), pictures)


def test_links_in_the_folder_are_its_owner_s(pictures, tmp_path, write_json):
    """A disk of pictures is often a link, and in the hub's cache each file is one."""
    (tmp_path / "disk").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "disk" / "there.png")
    (pictures / "linked").symlink_to(tmp_path / "disk")
    (pictures / "link.png").symlink_to(tmp_path / "disk" / "there.png")
    whole = tmp_path / "whole"
    whole.symlink_to(pictures)
    for root in (pictures, whole):
        for path in ("link.png", "linked/there.png", str(root / "link.png")):
            (image,) = load_records(write_json([llava(path)]), root)[0].images
            assert open_rgb(image).size == (8, 8)
        for path in ("linked/../../outside.png", "../whole/../outside.png"):
            with pytest.raises(BadRecordError, match="leaves the image folder"):
                load_records(write_json([llava(path)]), root)


def test_json_lines_may_be_called_json(pictures, write_json):
    path = write_json([llava(id="first"), llava(id="second")], "train.jsonl")
    other = path.with_name("lines.json")
    other.write_text(path.read_text())
    assert len(load_records(other, pictures)) == 2
    other.write_text(path.read_text() + "\n{broken")
    with pytest.raises(ValueError, match="lines.json, line 3, column"):
        load_records(other, pictures)


def test_a_pipe_is_no_data_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ValueError, match="pipe.json is not a regular file"):
        load_records(tmp_path / "pipe.json")


@pytest.mark.parametrize("text", ["[" * 20_000, '{"a":' * 20_000, "[" + "9" * 10_000 + "]"])
def test_json_of_no_measure_is_one_sentence(text, tmp_path):
    (tmp_path / "deep.json").write_text(text)
    with pytest.raises(ValueError, match=r"^deep.json.*: broken JSON: "):
        load_records(tmp_path / "deep.json")


def bomb(path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def cut_file(source: Path, target: Path) -> None:
    content = source.read_bytes()
    target.write_bytes(content[: len(content) * 2 // 3])


@pytest.fixture
def bad_pictures(pictures, tmp_path) -> Path:
    (pictures / "broken.png").symlink_to(tmp_path / "nothing.png")
    os.mkfifo(pictures / "pipe.png")
    (pictures / "text.png").write_text("no picture at all")
    (pictures / "empty.png").touch()
    (pictures / "sub").mkdir()
    bomb(pictures / "bomb.png")
    Image.new("RGB", (2001, 1000)).save(pictures / "large.png")
    cut_file(pictures / "red.png", pictures / "cut.png")
    cut_file(pictures / "green.jpg", pictures / "cut.jpg")
    return pictures


BAD_PICTURES = {
    "missing.png": "does not exist",
    "sub": "cannot be read: Is a directory",
    "../secret.png": "leaves the image folder",
    "broken.png": "broken.png does not exist (a link to ",
    "pipe.png": "is not a regular file",
    "/etc/hostname": "leaves the image folder",
    "a\0.png": "null character",
    "text.png": "is not a picture",
    "empty.png": "is not a picture",
    "bomb.png": "is too large",
    "large.png": "2001 x 1000 pixels; the limit is 2,000,000 pixels",
    "cut.png": "cannot be decoded",
    "cut.jpg": "cannot be decoded",
}

BAD_ROWS = {
    "no record": ("text", "must be an object with named fields, not a str"),
    "no turns": ({"id": "x"}, "needs one of 'conversations' and 'messages'; this one has neither"),
    "both forms": (llava() | {"messages": []}, "this one has both"),
    "turns no list": ({"conversations": {}}, "must be a list of turns, not a dict"),
    "empty": ({"conversations": []}, "the conversation is empty"),
    "turn no object": ({"conversations": ["hi"]}, "turn 0 must have from/value or role/content; it is a str"),
    "unknown role": ({"conversations": turns(("human", "a"), ("bot", "b"))}, "turn 1 has the unknown role 'bot'"),
    "role no text": ({"conversations": turns((["human"], "a"))}, "turn 0 has the unknown role"),
    "text no text": ({"conversations": turns(("human", 3))}, "the text of turn 0 must be a string, not an int"),
    "odd part": (
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": "x"}]}]},
        "turn 0 has a part that is neither a text nor an image",
    ),
    "part without text": (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "turn 0 has a part that is neither a text nor an image",
    ),
    "no assistant": ({"conversations": turns(("human", "a"))}, "there is no assistant turn"),
    "assistant first": (
        {"conversations": turns(("system", "s"), ("gpt", "a"), ("human", "b"), ("gpt", "c"))},
        "the assistant speaks first",
    ),
    "empty answer": (llava(answer=" \n"), "turn 1 is the assistant's and is empty"),
    "answer without width": (
        llava(answer="\u200b\u2060\ufeff\u3000"),
        "turn 1 is the assistant's and shows nothing: it has U+200B, U+2060, U+FEFF alone",
    ),
    "answer of fillers": (llava(answer="\u3000\u2800\u3164"), "shows nothing: it has U+2800, U+3164 alone"),
    "no mark": (llava(question="what is it?"), "the text has 0 <image> but the record has 1 image"),
    "no image": (llava(None), "the text has 1 <image> but the record has 0 images"),
    "one mark too many": (llava(question="<image><image> what?"), "has 2 <image> but the record has 1 image"),
    "image no path": (llava(3), "an image must be a path or a picture, not an int"),
    "image list of nothing": (llava([None]), "an image must be a path or a picture, not a NoneType"),
    "two fields": (llava(images=["red.png"]), "in 'image' or in 'images', not in both"),
}


@pytest.mark.parametrize("picture", BAD_PICTURES)
def test_bad_picture_names_the_record(bad_pictures, write_json, picture):
    path = write_json([llava(), llava(picture, id="culprit")])
    with pytest.raises(BadRecordError, match="1 of 2 records is bad") as caught:
        load_records(path, bad_pictures, max_pixels=2_000_000)
    assert "train.json, record 1 (id 'culprit')" in str(caught.value)
    assert BAD_PICTURES[picture] in str(caught.value)
    assert "`on_bad_record=skip`" in str(caught.value)


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_row_names_the_record(pictures, write_json, case):
    row, message = BAD_ROWS[case]
    with pytest.raises(BadRecordError) as caught:
        load_records(write_json([llava(), row]), pictures)
    assert "1 of 2 records is bad" in str(caught.value)
    assert "train.json, record 1" in str(caught.value)
    assert message in str(caught.value)


def test_stop_lists_the_first_ten(pictures, write_json):
    rows = [llava(f"missing{number}.png") for number in range(13)]
    with pytest.raises(BadRecordError) as caught:
        load_records(write_json([llava(), *rows]), pictures)
    message = str(caught.value)
    assert "13 of 14 records are bad" in message and "and 3 more, which a dry run with `on_bad_record=skip` lists" in message
    assert "missing9.png" in message and "missing10.png" not in message


def test_skip_counts_and_lists(pictures, write_json):
    rows = [llava("missing.png", id="a"), llava(id="b"), llava(None, id="c"), llava("wide.png", id="d")]
    records = load_records(write_json(rows), pictures, on_bad_record="skip")
    assert [record.where for record in records] == ["train.json, record 1 (id 'b')", "train.json, record 3 (id 'd')"]
    assert len(records.skipped) == 2
    assert "record 0 (id 'a')" in records.skipped[0] and "does not exist" in records.skipped[0]


def test_when_no_picture_is_there_the_folder_is_asked_about(pictures, write_json):
    rows = [llava("missing.png"), llava("other.png")]
    with pytest.raises(BadRecordError, match="pictures; is `image_root` right") as caught:
        load_records(write_json(rows), pictures)
    assert "Repair" not in str(caught.value)
    with pytest.raises(BadRecordError, match="Repair them; training can leave them out: `on_bad_record=skip`"):
        load_records(write_json([*rows, llava("red.png")]), pictures)


def test_nothing_left_is_an_error(pictures, write_json):
    with pytest.raises(BadRecordError, match="1 of 1 record is bad"):
        load_records(write_json([llava("missing.png")]), pictures, on_bad_record="skip")
    with pytest.raises(BadRecordError, match="there are no records"):
        load_records(write_json([]), pictures)


def test_pictures_are_checked_once_and_not_decoded(pictures, write_json, monkeypatch):
    opened = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda file: opened.append(file.name) or original(file))
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("a picture was decoded"))
    load_records(write_json([llava()] * 5 + [llava("green.jpg")] * 5), pictures)
    assert sorted(os.path.basename(name) for name in opened) == ["green.jpg", "red.png"]


def test_picture_with_bytes_after_its_end_is_good(pictures, write_json):
    with open(pictures / "green.jpg", "ab") as file:
        file.write(b"trailer" * 1000)
    assert len(load_records(write_json([llava("green.jpg")]), pictures)) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'[{"id": 1},\n {"id" 2}]', "a.json, line 2, column 8: broken JSON"),
        ("a.jsonl", b'{"id": 1}\n{"id": 2\n', "a.jsonl, line 2, column 9: broken JSON"),
        ("a.json", b'{"id": 1}', "must hold a list of records, not an object"),
        ("a.json", b'["\xff"]', "not UTF-8"),
        ("a.csv", b"id,image", "data files end in .json"),
    ],
)
def test_broken_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_records(tmp_path / name)


def test_missing_file_and_unknown_options_are_named(tmp_path, pictures, write_json):
    with pytest.raises(ValueError, match="absent.json: there is no such file"):
        load_records(tmp_path / "absent.json")
    with pytest.raises(ValueError, match="^on_bad_record: there is no 'ignore'"):
        load_records(write_json([llava()]), pictures, on_bad_record="ignore")
    with pytest.raises(ValueError, match="image_root: .*nowhere is not a folder"):
        load_records(write_json([llava()]), tmp_path / "nowhere")


def test_unsuitable_objects_are_refused():
    split = datasets.Dataset.from_list([llava(None, "hi")])
    for data in (datasets.DatasetDict({"train": split}), split.to_iterable_dataset()):
        with pytest.raises(ValueError, match="expected a datasets.Dataset"):
            load_records(data)


def test_pictures_in_memory(pictures):
    picture = Image.open(pictures / "red.png")
    assert load_records([llava(picture)])[0].images == (picture,)
    with pytest.raises(BadRecordError, match="64 x 48 pixels, more than 100"):
        load_records([llava(picture)], max_pixels=100)


def test_progress_only_for_many_records(pictures, write_json, capsys):
    load_records([llava(None, "hi")] * 100)
    assert capsys.readouterr().err == ""
    load_records([llava(None, "hi")] * 10_001)
    assert "checking the given list" in capsys.readouterr().err


def test_records_need_neither_torch_nor_transformers():
    code = "import sys, evomoe.data.records, evomoe.data.easy_vqa; print({'torch', 'transformers'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
