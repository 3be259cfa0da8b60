"""Answers on disk: nothing is lost, nothing is mixed up."""

import json
import os
from pathlib import Path

import pytest

from evomoe.evaluation import Question
from evomoe.evaluation.answers import AnswerFile, key_of
from evomoe.support.content import fingerprint

QUESTIONS = [Question(str(i), f"question {i}") for i in range(4)]
PROMPTS = [f"prompt {i}" for i in range(4)]


def some(*numbers: int) -> list[tuple[Question, str, str]]:
    return [(QUESTIONS[i], PROMPTS[i], f"answer {i} ü\n2") for i in numbers]


def test_answers_are_read_again_by_question_and_end_up_in_order(tmp_path):
    answers = AnswerFile(tmp_path / "quiz", {"model": 1})
    answers.append(some(2, 0), "m")
    assert AnswerFile(tmp_path / "quiz", {"model": 1}).read() == {"2": "answer 2 ü\n2", "0": "answer 0 ü\n2"}
    AnswerFile(tmp_path / "quiz", {"model": 1}, rank=1).append(some(1, 3), "m")  # another process
    assert not answers.finished
    assert list(answers.finish(QUESTIONS, PROMPTS, "m")) == ["0", "1", "2", "3"]
    assert answers.finished and [path.name for path in (tmp_path / "quiz").iterdir()] == [answers.path.name]
    rows = [json.loads(line) for line in answers.path.read_text().splitlines()]
    assert [row["question_id"] for row in rows] == ["0", "1", "2", "3"]
    assert rows[1] == {
        "question_id": "1", "prompt": "prompt 1", "text": "answer 1 ü\n2", "answer_id": answers.key, "model_id": "m", "metadata": {},
    }  # fmt: skip
    assert AnswerFile(tmp_path / "quiz", {"model": 1}).read()["3"] == "answer 3 ü\n2"


def test_other_settings_have_other_answers(tmp_path):
    AnswerFile(tmp_path, {"model": 1, "prompts": "a"}).append(some(0), "m")
    assert AnswerFile(tmp_path, {"prompts": "a", "model": 1}).read()
    assert not AnswerFile(tmp_path, {"model": 2, "prompts": "a"}).read()
    assert key_of({"model": 1}) != key_of({"model": 2})


@pytest.mark.parametrize("left", [b'{"question_id": "1", "te', b'{"question_id": "1", "text": "\xc3', b"\n"])
def test_a_line_that_was_cut_short_is_asked_again(tmp_path, left):
    answers = AnswerFile(tmp_path, {})
    answers.append(some(0), "m")
    file = next(tmp_path.glob("*partial*"))
    with file.open("ab") as opened:
        opened.write(left)
    assert set(AnswerFile(tmp_path, {}, rank=1).read()) == {"0"}  # another process may not touch it
    again = AnswerFile(tmp_path, {})
    again.append(some(1), "m")
    assert set(again.read()) == {"0", "1"}


def test_damaged_files_are_named(tmp_path):
    answers = AnswerFile(tmp_path, {})
    answers.append(some(0, 1, 2, 3), "m")
    answers.finish(QUESTIONS, PROMPTS, "m")
    lines = answers.path.read_text().splitlines()
    answers.path.write_text("\n".join(lines[:2]) + "\n")
    with pytest.raises(ValueError, match="answers-.*: 2 answers missing, first to '2'"):
        answers.check(QUESTIONS, answers.read())
    answers.path.write_text("\n".join([lines[0], "\0\0", *lines[2:]]) + "\n")
    with pytest.raises(ValueError, match="answers-.*, line 2: damaged"):
        answers.read()


def test_a_full_disk_keeps_what_is_there(tmp_path, monkeypatch):
    answers = AnswerFile(tmp_path, {})
    answers.append(some(0), "m")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"partial-0.jsonl: No space left on device. The answers before are kept: make room"):
        answers.append(some(1), "m")
    assert AnswerFile(tmp_path, {}).read()["0"]


def test_a_model_is_known_by_its_files_not_by_its_folder(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "config.json").write_text("{}")
        (folder / "README.md").write_text(str(folder))
    os.utime(two / "config.json", (1, 1))
    before = fingerprint(one)
    assert before == fingerprint(two) and set(before) == {"config.json", "model.safetensors"}
    stamp = (one / "model.safetensors").stat()
    (one / "model.safetensors").write_bytes(b"weightz")  # overwritten: as long as before, and with the same date
    os.utime(one / "model.safetensors", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert fingerprint(one) != before
    for number, name in enumerate(("chat_template.jinja", "vocab.txt", "modeling.py", "tokenizer.model"), 1):
        (two / name).write_text("1")
        assert len(fingerprint(two)) == len(before) + number


def test_a_model_of_the_hub_is_known_by_its_commit(tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = Path(tmp_path) / "models--a--b" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "models--a--b" / "refs").mkdir()
    (tmp_path / "models--a--b" / "refs" / "main").write_text(commit)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fingerprint("a/b") == {"hub": "a/b", "commit": commit}
