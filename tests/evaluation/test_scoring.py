"""The verb score: answers of another program, without torch."""

import json
import subprocess
import sys

import pytest
from official_files import WRITERS

from evomoe.cli import main
from evomoe.evaluation import BENCHMARKS
from evomoe.evaluation.sources import DataFolder


@pytest.fixture(params=WRITERS)
def answered(request, tmp_path):
    """A benchmark's official files in small, and right answers to it."""
    name, folder = request.param, tmp_path / "data"
    WRITERS[name](folder)
    questions = BENCHMARKS[name].load(DataFolder(name, folder))
    rows = [json.dumps({"question_id": question.id, "text": question.answer}) for question in questions]
    (tmp_path / "answers.jsonl").write_text("\n".join(rows))
    return name, folder, tmp_path / "answers.jsonl"


def test_right_answers_get_the_whole_score(answered, tmp_path, capsys):
    name, folder, answers = answered
    command = [
        "score",
        name,
        "--predictions",
        str(answers),
        "--annotations",
        str(folder),
        "--output",
        str(tmp_path / "result.json"),
    ]
    if BENCHMARKS[name].counts:
        assert main(command) == 1
        assert "--any-version" in capsys.readouterr().err
    assert main([*command, "--any-version"]) == 0
    assert f"\n| {name} " in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["benchmark"] == name and result["score"] > 0 and result["data"]
    assert main([*command, "--any-version"]) == 1 and "exists already" in capsys.readouterr().err


def test_the_annotation_file_itself_may_be_named(tmp_path, capsys):
    WRITERS["pope"](tmp_path / "data")
    questions = BENCHMARKS["pope"].load(DataFolder("pope", tmp_path / "data"))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"question_id": q.id, "text": q.answer}) for q in questions))
    file = next((tmp_path / "data" / "coco").iterdir())
    assert main(["score", "pope", "--predictions", str(tmp_path / "a.jsonl"), "--annotations", str(file), "--any-version"]) == 0
    assert f"| {len(questions)} |" in " ".join(capsys.readouterr().out.split())


def test_missing_answers_count_as_wrong_on_request(answered, tmp_path, capsys):
    name, folder, answers = answered
    lines = answers.read_text().splitlines()
    answers.write_text("\n".join(lines[1:]))
    command = ["score", name, "--predictions", str(answers), "--annotations", str(folder), "--any-version"]
    assert main(command) == (0 if len(lines) == 1 else 1)
    assert "no answer" in capsys.readouterr().err or len(lines) == 1
    if len(lines) > 1:
        assert main([*command, "--allow-missing"]) == 0


def test_scoring_loads_no_torch(tmp_path):
    WRITERS["gqa"](tmp_path / "gqa")
    questions = BENCHMARKS["gqa"].load(DataFolder("gqa", tmp_path / "gqa"))
    rows = [{"questionId": question.id, "prediction": question.answer} for question in questions]
    (tmp_path / "answers.json").write_text(json.dumps(rows))
    code = (
        "import sys; from evomoe.cli import main\n"
        f"assert main(['score', 'gqa', '--predictions', {str(tmp_path / 'answers.json')!r}, "
        f"'--annotations', {str(tmp_path / 'gqa')!r}, '--any-version']) == 0\n"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "set()"
