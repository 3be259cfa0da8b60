"""A benchmark that another package adds: one row of `BENCHMARKS`, which is listed, asked, scored, and read from others' files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image
from quiz_texts import TEXTS

from evomoe.cli import main
from evomoe.evaluation import BENCHMARKS, Benchmark, Question
from evomoe.evaluation.benchmark import Findings
from evomoe.evaluation.data_folder import DataFile, DataFolder
from evomoe.evaluation.fields import values
from evomoe.evaluation.foreign_answers import ForeignAnswer, ForeignFiles, Key, Pairing
from evomoe.evaluation.pictures import picture_file
from evomoe.evaluation.statistics import accuracy, error_of_mean

FILE = DataFile("walls.json", "https://example.org/walls.json")


def load(folder: DataFolder) -> list[Question]:
    path = folder.need(FILE)
    images, questions = folder.images("pictures"), []
    for number, record in enumerate(folder.json(path), 1):
        where = f"{path}, record {number}"
        name, text, answer, room = values(record, where, "picture", "question", "answer", "room", kind=str)
        questions.append(Question(str(number), text, picture_file(images, name, where), answer, room, unit=room))
    return questions


def score(questions: Sequence[Question], answers: Mapping[str, str], protocol: str) -> Findings:
    """A room counts if all of its questions are right."""
    rooms: dict[str, bool] = {}
    for question in questions:
        rooms[question.unit] = rooms.get(question.unit, True) and answers[question.id] == question.answer
    points = [float(right) for right in rooms.values()]
    return Findings(accuracy(points)["accuracy"], "rooms %", 100 * error_of_mean(points), "over rooms", unparsable=0)


def keys_of_questions(questions: Sequence[Question]) -> list[Key]:
    return [(Path(question.picture.key).name, question.text) for question in questions]


def key_of_answer(answer: ForeignAnswer) -> Key:
    return answer.id, answer.prompt


def read_folder(path: Path):
    for file in sorted(path.glob("*.answer")):
        yield ForeignAnswer(file.stem, file.read_text(), "", str(file))


WALLS = Benchmark(
    "walls", "Walls: rooms and their colours.", load, lambda question, protocol: f"{question.text}", score, max_new_tokens=3,
    version=3, part_of_unit=lambda question: f"a wall of the {question.unit}",
    foreign_files=ForeignFiles(Pairing(keys_of_questions, key_of_answer, hint="; walls are known by their pictures"), read_folder),
    counts=(4,), folders=("the-walls",), divisor=10,
)  # fmt: skip


@pytest.fixture
def root(monkeypatch, tmp_path) -> Path:
    """The folder with its data; the benchmark is there for as long as the test lasts."""
    monkeypatch.setitem(BENCHMARKS, "walls", WALLS)
    folder = tmp_path / "data" / "the-walls"
    (folder / "pictures").mkdir(parents=True)
    records = []
    for number, colour in enumerate(("red", "blue", "white", "red")):
        Image.new("RGB", (16, 16), colour).save(folder / "pictures" / f"{number}.png")
        room = ("kitchen", "bath")[number // 2]
        records.append({"picture": f"{number}.png", "question": TEXTS[number], "answer": colour, "room": room})
    (folder / FILE.path).write_text(json.dumps(records))
    return tmp_path / "data"


def score_file(root: Path, content: str, *more: str) -> int:
    file = root / "answers.jsonl"
    file.write_text(content)
    return main(["score", "walls", "--predictions", str(file), "--annotations", str(root / "the-walls"), *more])


def test_it_is_listed(root, capsys):
    assert main(["list", "benchmarks"]) == 0
    assert any(line.split(maxsplit=1) == ["walls", WALLS.summary] for line in capsys.readouterr().out.splitlines())


def test_a_model_is_scored_on_it(root, workspace, tmp_path, capsys):
    asked = ["eval", str(workspace / "model"), "--benchmarks", "walls", "--data-root", str(root), "--workers", "0"]
    assert main([*asked, "--output", str(tmp_path / "out")]) == 0
    assert "| walls " in capsys.readouterr().out
    (file,) = (tmp_path / "out" / "walls").glob("result-*.json")
    result = json.loads(file.read_text())
    assert (result["benchmark"], result["scorer"], result["unit"], result["questions"]) == ("walls", "walls 3", "rooms %", 4)
    (answers,) = (tmp_path / "out" / "walls").glob("answers-*.jsonl")
    assert main([*asked, "--dump-prompts", "--output", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert score_file(root, answers.read_text()) == 0  # its own answers, read as another program's are
    assert f"| {result['score']:.2f} |" in " ".join(capsys.readouterr().out.split())


@pytest.fixture
def foreign() -> list[dict[str, str]]:
    """Right answers, under other ids: the pictures' names."""
    colours = ("red", "blue", "white", "red")
    return [{"question_id": f"{number}.png", "prompt": TEXTS[number], "text": colour} for number, colour in enumerate(colours)]


def lines(rows: Sequence[Mapping[str, str]]) -> str:
    return "\n".join(map(json.dumps, rows))


def test_answers_find_their_questions_as_it_says(root, foreign, capsys):
    assert score_file(root, lines(foreign[::-1])) == 0
    assert "| walls | 100.00 |" in " ".join(capsys.readouterr().out.split())
    assert score_file(root, lines([{**foreign[0], "question_id": "9.png"}, *foreign[1:]])) == 1
    assert "in 4; walls are known by their pictures." in capsys.readouterr().err


def test_half_a_unit_is_called_what_it_says(root, foreign, capsys):
    assert score_file(root, lines(foreign[:3])) == 1
    assert "walls: a wall of the bath has no answer (question 4); the 2 are scored together." in capsys.readouterr().err
    assert score_file(root, lines(foreign[:3]), "--allow-missing") == 0
    assert "| walls | 50.00 |" in " ".join(capsys.readouterr().out.split())


def test_its_folder_of_answers_is_read_as_it_says(root, capsys):
    for number, colour in enumerate(("red", "blue", "white", "blue"), 1):
        (root / f"{number}.answer").write_text(colour)
    assert main(["score", "walls", "--predictions", str(root), "--annotations", str(root / "the-walls")]) == 0
    assert "| walls | 50.00 |" in " ".join(capsys.readouterr().out.split())
