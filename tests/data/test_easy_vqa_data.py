import json
from collections import Counter, defaultdict

import pytest
from PIL import Image

from evomoe.data import easy_vqa
from evomoe.data.records import load_records


@pytest.fixture(scope="module")
def train() -> list[easy_vqa.Question]:
    return easy_vqa.questions("train")


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("what color is the triangle?", "color"),
        ("what is the color of the shape?", "color"),
        ("what shape does the image contain?", "shape"),
        ("what is the blue shape?", "shape"),
        ("is a teal shape present?", "yes/no"),
        ("does the image contain a circle?", "yes/no"),
        ("is no rectangle present?", "yes/no negated"),
        ("is there not a blue shape in the image?", "yes/no negated"),
        ("does the image not contain a red shape?", "yes/no negated"),
    ],
)
def test_questions_are_typed(question, kind):
    assert easy_vqa.mix_of(question) == kind


def test_splits_are_whole(train):
    test = easy_vqa.questions("test")
    assert len(train) == 38_575 and len(test) == 9_673
    assert len({item.image_path for item in train}) == 4_000 and len({item.image_path for item in test}) == 1_000
    answers = defaultdict(set)
    for item in train + test:
        answers[item.type].add(item.answer)
    assert answers["yes/no"] == answers["yes/no negated"] == {"yes", "no"}
    assert answers["shape"] == {"circle", "rectangle", "triangle"}
    assert len(answers["color"]) == 8


def test_captions_tell_the_truth(train):
    captions = easy_vqa.captions(train)
    assert 3_000 < len(captions) < 4_000
    for item in train:
        if item.image_path in captions:
            _, color, shape = captions[item.image_path].split()
            words = item.question.rstrip("?").split()
            if item.type in ("color", "shape"):
                assert item.answer == {"color": color, "shape": shape}[item.type]
            else:
                named = color in words or shape in words
                assert (item.answer == "yes") == (named != (item.type == "yes/no negated"))


def test_captions_use_only_what_questions_reveal():
    ask = [
        easy_vqa.Question("other", "what color is the shape?", "blue", "color"),
        easy_vqa.Question("other", "what shape is present?", "circle", "shape"),
        easy_vqa.Question("taken for granted", "what is the blue shape?", "circle", "shape"),
        easy_vqa.Question("only color", "what color is the shape?", "blue", "color"),
        easy_vqa.Question("only color", "is there a circle?", "no", "yes/no"),
        easy_vqa.Question("only color", "is there not a circle?", "yes", "yes/no negated"),
        easy_vqa.Question("yes", "is there a circle?", "yes", "yes/no"),
        easy_vqa.Question("yes", "is there a blue shape?", "yes", "yes/no"),
    ]
    blue_circles = dict.fromkeys(["other", "taken for granted", "yes"], "a blue circle")
    assert easy_vqa.captions(ask) == blue_circles


def kinds_of(rows: list[dict]) -> Counter:
    questions = [row["conversations"][0]["value"].removeprefix("<image>\n") for row in rows]
    return Counter("caption" if q == easy_vqa.CAPTION_REQUEST else easy_vqa.mix_of(q) for q in questions)


def test_mixes(train):
    everything = Counter(item.type for item in train)
    captions = len(easy_vqa.captions(train))
    assert kinds_of(easy_vqa.records("train", "full")) == everything
    assert kinds_of(easy_vqa.records("train", "captions")) == {"caption": captions}
    del everything["yes/no negated"]
    assert kinds_of(easy_vqa.records("train", "warmup")) == everything | {"caption": captions}
    with pytest.raises(ValueError, match="mix: 'half' is not one of captions, warmup, full"):
        easy_vqa.records("train", "half")
    with pytest.raises(ValueError, match="split: 'dev' is not one of train, test"):
        easy_vqa.questions("dev")


def test_order_is_fixed_by_the_seed():
    first, again, other = (easy_vqa.records("train", "captions", seed) for seed in (1, 1, 2))
    assert first == again != other
    assert sorted(row["image"] for row in first) == sorted(row["image"] for row in other)


def test_records_load_and_show_pictures(tmp_path):
    records = load_records(easy_vqa.records("train", "captions")[:50])
    assert Image.open(records[0].images[0]).size == (64, 64)
    assert records[0].turns[0].text == "<image>\ndescribe the image."


def test_export_writes_a_file_that_loads(tmp_path):
    easy_vqa.export("test", tmp_path / "test.json", "full")
    assert [path.name for path in tmp_path.iterdir()] == ["test.json"]
    rows = json.loads((tmp_path / "test.json").read_text())
    assert len(rows) == len(load_records(tmp_path / "test.json")) == 9_673
