"""One's own held-out records as a benchmark: every question of a conversation is asked, with what was said before it."""

import base64
import io
import json

import pytest
from PIL import Image
from tiny import make, make_processor, make_tokenizer

from evomoe.cli import main
from evomoe.data.turns import BadRecordError
from evomoe.evaluation import BENCHMARKS
from evomoe.evaluation.evaluation_options import EvaluationOptions
from evomoe.evaluation.prepared import prepare

HELD_OUT = BENCHMARKS["held-out"]


def said(*texts: str) -> list[dict]:
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]


@pytest.fixture
def data(tmp_path):
    """Five questions: of a conversation about two pictures, of a single one without any, about a picture that the record holds."""
    folder = tmp_path / "data" / "held-out"
    folder.mkdir(parents=True)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (16, 16), "red").save(folder / name)
    held = io.BytesIO()
    Image.new("RGB", (16, 16), "blue").save(held, "PNG")
    inline = "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
    talk = said("<image>\nwhat color ?", "red", "and <image>\nwhat shape ?", "a red circle .")
    given = [*said("is it red ?", "yes", "is it blue ?", "no")]
    given[1]["loss"] = False
    rows = [
        {"images": ["a.png", "b.png"], "conversations": talk},
        {"conversations": given},
        {"image": inline, "conversations": said("<image>\nwhat color is it ?", "blue")},
    ]
    (folder / "records.json").write_text(json.dumps(rows))
    return tmp_path / "data"


def prepared(data):
    return prepare(HELD_OUT, make_processor(), EvaluationOptions(data_root=str(data)))


def test_each_answer_that_is_learned_is_asked_for_with_what_was_said_before(data):
    one = prepared(data)
    assert [(question.id, question.answer) for question in one.questions] == [
        ("0-1", "red"), ("0-3", "a red circle ."), ("1-3", "no"), ("2-1", "blue")
    ]  # fmt: skip
    assert [len(asked.pictures) for asked in one.prompts.asked] == [1, 2, 0, 1]
    assert "red" in one.prompts.texts[1] and "a red circle" not in one.prompts.texts[1]
    assert one.prompts.texts[2].index("yes") < one.prompts.texts[2].index("is it blue ?")
    assert one.questions[3].pictures[0].open().getpixel((0, 0)) == (0, 0, 255)
    assert len({picture.fingerprint() for question in one.questions for picture in question.pictures}) == 2
    assert one.data.read["records.json"]["bytes"] == (data / "held-out" / "records.json").stat().st_size


def test_an_answer_matches_by_its_words_and_longer_ones_by_their_overlap(data):
    questions = prepared(data).questions
    answers = {"0-1": " Red. ", "0-3": "A blue circle.", "1-3": "", "2-1": "red"}
    found = HELD_OUT.score(questions, answers, "official")
    table = found.tables["right answers"]
    assert found.score == 25 and found.unparsable == 1 and list(table) == ["of one word", "of several words", "all"]
    assert table["of one word"] == {"F1 of words": pytest.approx(100 / 3), "accuracy": pytest.approx(100 / 3), "questions": 3}
    assert table["of several words"] == {"F1 of words": pytest.approx(200 / 3), "accuracy": 0, "questions": 1}


def scored(model, processor, data, tmp_path) -> int:
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    where = ["--data-root", str(data), "--output", str(tmp_path / "out")]
    return main(["eval", str(tmp_path / "model"), "--benchmarks", "held-out", *where])


def test_a_model_is_scored_on_them_and_other_answers_too(data, model, tmp_path, capsys):
    assert scored(model, make_processor(), data, tmp_path) == 0
    assert "of several words" in capsys.readouterr().out
    answers = [{"question_id": question.id, "text": question.answer} for question in prepared(data).questions]
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, answers)))
    records = str(data / "held-out" / "records.json")
    assert main(["score", "held-out", "--predictions", str(tmp_path / "answers.jsonl"), "--annotations", records]) == 0
    assert "100.00" in capsys.readouterr().out


def test_a_model_of_words_alone_is_scored_on_words(data, tmp_path, capsys):
    assert scored(make("qwen2-moe"), make_tokenizer(), data, tmp_path) == 1
    assert "question '0-1': it has images, but " in capsys.readouterr().err
    path = data / "held-out" / "records.json"
    path.write_text(json.dumps([row for row in json.loads(path.read_text()) if not {"image", "images"} & row.keys()]))
    assert scored(make("qwen2-moe"), make_tokenizer(), data, tmp_path) == 0
    assert "of one word" in capsys.readouterr().out


def test_records_that_cannot_be_asked_are_named(data):
    path = data / "held-out" / "records.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([{**rows[1], "conversations": said("what ?")}]))
    with pytest.raises(BadRecordError, match=r"records.json.*record 0"):
        prepared(data)
    path.unlink()
    with pytest.raises(
        ValueError, match=r"held-out: missing in .*: records.json \(from you: held-out records, as for training\) or"
    ):
        prepared(data)
