"""The verb score: answers of another program, without torch."""

import json
import subprocess
import sys

import pytest
from official_files import WRITERS

from evomoe.cli import main
from evomoe.evaluation import BENCHMARKS
from evomoe.evaluation.data_folder import DataFolder


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
    whole = {"mme": 100 * 2 * len(result["tables"].get("subtask", {}))}.get(name, 100)
    assert result["benchmark"] == name and result["data"] and 0.6 * whole < result["score"] <= whole  # annotators disagree
    assert main([*command, "--any-version"]) == 1 and "exists already" in capsys.readouterr().err


def test_the_annotation_file_itself_may_be_named(tmp_path, capsys):
    WRITERS["pope"](tmp_path / "data")
    questions = BENCHMARKS["pope"].load(DataFolder("pope", tmp_path / "data"))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"question_id": q.id, "text": q.answer}) for q in questions))
    file = next((tmp_path / "data" / "coco").iterdir())
    assert main(["score", "pope", "--predictions", str(tmp_path / "a.jsonl"), "--annotations", str(file), "--any-version"]) == 0
    assert f"| {len(questions)} |" in " ".join(capsys.readouterr().out.split())


def test_another_file_than_the_benchmark_s_is_refused(tmp_path, capsys):
    WRITERS["gqa"](tmp_path / "data")
    (tmp_path / "data" / "val_balanced_questions.json").write_text("{}")
    (tmp_path / "a.json").write_text("[]")
    named = str(tmp_path / "data" / "val_balanced_questions.json")
    assert main(["score", "gqa", "--predictions", str(tmp_path / "a.json"), "--annotations", named, "--any-version"]) == 1
    assert "gqa reads no file of that name. It reads testdev_balanced_questions.json" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", "{}", '{"annotations": null}', '{"annotations": [{}]}', "7"])
@pytest.mark.parametrize("name", ["vqav2", "gqa", "sqa", "textvqa"])
def test_annotations_of_another_form_are_an_error_that_names_the_file(name, content, tmp_path, capsys):
    WRITERS[name](tmp_path / "data")
    for file in (tmp_path / "data").glob("*.json"):
        file.write_text(content)
    (tmp_path / "a.json").write_text('[{"question_id": "1", "answer": "x"}]')
    command = ["score", name, "--predictions", str(tmp_path / "a.json"), "--annotations", str(tmp_path / "data"), "--any-version"]
    assert main(command) == 1
    assert ".json" in capsys.readouterr().err


def test_a_folder_without_the_data_is_not_replaced_by_the_hub(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.load_dataset", None)
    (tmp_path / "a.jsonl").write_text('{"question_id": "1", "text": "x"}')
    assert main(["score", "mmbench", "--predictions", str(tmp_path / "a.jsonl"), "--annotations", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "mmbench: its data are not in" in error and "mmbench_dev_20230712.tsv (from https" in error
    assert "MD5 b6caf1133a01c6bb705cf753bb527ed8" in error and "hf download" in error


def test_a_file_that_is_not_the_published_one_is_scored_on_request_only(tmp_path, capsys):
    WRITERS["mmbench"](tmp_path / "data")
    (table,) = (tmp_path / "data").glob("*.tsv")
    table.rename(tmp_path / "data" / "MMBench_DEV_EN.tsv")
    questions = BENCHMARKS["mmbench"].load(DataFolder("mmbench", tmp_path / "data"))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"question_id": q.id, "text": q.answer}) for q in questions))
    command = ["score", "mmbench", "--predictions", str(tmp_path / "a.jsonl"), "--annotations", str(tmp_path / "data")]
    assert main(command) == 1
    assert "MMBench_DEV_EN.tsv has the MD5" in capsys.readouterr().err and main([*command, "--any-version"]) == 0


def test_mmes_release_itself_may_be_named(tmp_path, capsys):
    WRITERS["mme"](tmp_path)
    release = tmp_path / "MME_Benchmark_release_version"
    questions = BENCHMARKS["mme"].load(DataFolder("mme", release))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"question_id": q.id, "text": q.answer}) for q in questions))
    command = ["score", "mme", "--predictions", str(tmp_path / "a.jsonl"), "--annotations", str(release)]
    assert main([*command, "--any-version"]) == 0
    assert "| 6 |" in " ".join(capsys.readouterr().out.split())


def test_a_mistyped_benchmark_is_named_as_the_argument_is(tmp_path, capsys):
    assert main(["score", "popo", "--predictions", str(tmp_path), "--annotations", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(
        "evomoe: benchmark: there is no 'popo'; did you mean 'pope'? Choose from vqav2, gqa,"
    )


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


@pytest.fixture
def pope(tmp_path) -> list[str]:
    """The command that scores right answers to POPE."""
    WRITERS["pope"](tmp_path / "data")
    questions = BENCHMARKS["pope"].load(DataFolder("pope", tmp_path / "data"))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"question_id": q.id, "text": q.answer}) for q in questions))
    files = ["--predictions", str(tmp_path / "a.jsonl"), "--annotations", str(tmp_path / "data")]
    return ["score", "pope", *files, "--any-version", "--output"]


def test_the_folder_of_the_result_is_made(pope, tmp_path, capsys):
    assert main([*pope, str(tmp_path / "new" / "folder" / "x.json")]) == 0
    assert json.loads((tmp_path / "new" / "folder" / "x.json").read_text())["benchmark"] == "pope"


def test_a_folder_that_cannot_be_made_is_named_before_scoring(pope, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("evomoe.evaluation.scoring.load_questions", None)
    (tmp_path / "file").write_text("")
    assert main([*pope, str(tmp_path / "file" / "x.json")]) == 1
    error = capsys.readouterr().err
    assert error.endswith("/file is a file, so nothing can lie in it; name another file.\n") and "Errno" not in error


def test_a_full_disk_costs_no_score(pope, tmp_path, capsys, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    assert main([*pope, str(tmp_path / "x.json")]) == 0
    out = capsys.readouterr().out
    assert "\n| pope " in out and f"{tmp_path / 'x.json'}: No space left on device. It was not written: make room" in out
    assert not list(tmp_path.glob("x.json*"))
