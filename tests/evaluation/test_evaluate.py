"""The verb eval: tables, files, resuming, several processes."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from quiz_texts import TEXTS
from safetensors.torch import load_file, save_file
from tiny import make_language_model

from evomoe.evaluation import BENCHMARKS, checkpoint_evaluation
from evomoe.evaluation.evaluate import dump_prompts, evaluate_checkpoint
from evomoe.evaluation.evaluation_options import EvaluationOptions
from evomoe.evaluation.generation import Answerer
from evomoe.evaluation.pictures import FilePicture
from evomoe.support.errors import OptionError


def rows_of(folder: Path) -> list[dict]:
    (file,) = (path for path in folder.glob("answers-*.jsonl") if "partial" not in path.name)
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize(("limit", "chosen"), [(0, range(7)), (2, (3, 5)), (4, (3, 4, 5, 6)), (7, range(7)), (100, range(7))])
def test_a_checkpoint_is_scored_on_all_or_some_questions(workspace, quiz, options, limit, chosen):
    text = evaluate_checkpoint(workspace / "model", ["quiz"], replace(options, limit=limit))
    folder = Path(options.output)
    rows = rows_of(folder / "quiz")
    assert [row["question_id"] for row in rows] == [f"q{i}" for i in chosen]
    assert [TEXTS[i] in row["prompt"] for i, row in zip(chosen, rows, strict=True)] == [True] * len(rows)
    (file,) = (folder / "quiz").glob("result-*.json")
    result = json.loads(file.read_text())
    assert result["score"] == pytest.approx(100 * sum(bool(row["text"]) for row in rows) / len(rows))
    assert result["questions"] == len(rows) and result["limit"] == limit and result["scorer"] == "quiz 1"
    assert {"model", "prompts", "generation", "image_aspect", "versions", "dtype"} <= set(result["settings"])
    assert f"| {result['score']:.2f} |" in " ".join(text.split())
    assert (folder / "report.md").read_text().count("\n| quiz") == 2


def test_finished_answers_are_not_asked_again(workspace, quiz, options, asked):
    first = evaluate_checkpoint(workspace / "model", ["quiz"], options)
    assert len(asked) == 7
    again = evaluate_checkpoint(workspace / "model", ["quiz"], replace(options, batch_size=5))
    assert len(asked) == 7 and "quiz: answered before, nothing was asked anew" in again
    assert again.split("\n\n")[:2] == first.split("\n\n")[:2]


def test_an_interrupted_run_goes_on_where_it_stopped(workspace, quiz, options, asked, monkeypatch):
    evaluate_checkpoint(workspace / "model", ["quiz"], replace(options, output=f"{options.output}-whole"))
    generate, calls = Answerer._generate, []

    def interrupted(self, prompts, batch):
        calls.append(batch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(self, prompts, batch)

    asked.clear()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Answerer, "_generate", interrupted)
        evaluate_checkpoint(workspace / "model", ["quiz"], options)
    assert len(asked) == 4 and not list(Path(options.output).glob("quiz/result-*"))
    evaluate_checkpoint(workspace / "model", ["quiz"], options)
    assert sorted(asked) == [f"q{i}" for i in range(7)]  # each once
    assert rows_of(Path(options.output) / "quiz") == rows_of(Path(f"{options.output}-whole") / "quiz")


def test_a_changed_checkpoint_in_the_same_folder_is_asked_anew(workspace, quiz, options, asked):
    evaluate_checkpoint(workspace / "model", ["quiz"], options)
    file = workspace / "model" / "model.safetensors"
    weights = load_file(file)
    save_file({name: tensor + torch.ones_like(tensor) for name, tensor in weights.items()}, file, {"format": "pt"})
    evaluate_checkpoint(workspace / "model", ["quiz"], options)
    assert len(asked) == 14 and len(list(Path(options.output).glob("quiz/answers-*.jsonl"))) == 2


def test_a_changed_prompt_or_picture_is_asked_anew(workspace, quiz, options, asked, monkeypatch, tmp_path):
    evaluate_checkpoint(workspace / "model", ["quiz"], options)
    monkeypatch.setitem(BENCHMARKS, "quiz", replace(quiz, prompt=lambda question, protocol: "red ?"))
    evaluate_checkpoint(workspace / "model", ["quiz"], options)
    assert len(asked) == 14
    content = (tmp_path / "0.png").read_bytes()
    (tmp_path / "0.png").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # of the same size
    evaluate_checkpoint(workspace / "model", ["quiz"], options)
    assert len(asked) == 21


RUN = """
import shutil, sys
from evomoe.cli import main
from evomoe.evaluation.answers import AnswerFile

finish = AnswerFile.finish


def keeping(self, *arguments):
    for partial in self._partial():
        shutil.copy(partial, sys.argv[1])
    return finish(self, *arguments)


AnswerFile.finish = keeping
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_two_processes_give_what_one_gives(workspace, tmp_path):
    """Under the launcher that users have, with a benchmark that needs no data folder; each process's share is kept aside."""
    pytest.importorskip("easy_vqa")
    (tmp_path / "run.py").write_text(RUN)
    (tmp_path / "shares").mkdir()
    arguments = ["eval", str(workspace / "model"), "--limit", "6", "--batch-size", "2", "--workers", "0"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*torchrun, str(tmp_path / "run.py"), str(tmp_path / "shares"), *arguments, "--output", str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("| benchmark ") == 1
    text = evaluate_checkpoint(
        workspace / "model", ["easy-vqa"], EvaluationOptions(limit=6, output=str(tmp_path / "one"), workers=0)
    )
    rows = rows_of(tmp_path / "one" / "easy-vqa")
    assert rows == rows_of(tmp_path / "two" / "easy-vqa")
    assert text.split("\n\nAnswers")[0] in result.stdout
    shares = [path.read_text().splitlines() for path in sorted((tmp_path / "shares").iterdir())]
    assert [len(lines) for lines in shares] == [4, 2]  # three batches of two
    assert {json.loads(line)["question_id"] for lines in shares for line in lines} == {row["question_id"] for row in rows}


def test_several_benchmarks_share_a_report(workspace, quiz, options, monkeypatch):
    monkeypatch.setitem(BENCHMARKS, "other", replace(quiz, name="other"))
    text = evaluate_checkpoint(workspace / "model", ["quiz", "other"], replace(options, limit=1))
    assert "\n| quiz " in text and "\n| other " in text and "| other, question type |" in text


def test_the_server_s_files_are_written_beside_the_answers(workspace, quiz, options, monkeypatch):
    def submit(questions, answers, folder: Path) -> list[Path]:
        folder.mkdir(exist_ok=True)
        (folder / "all.txt").write_text(str(len(answers)))
        return [folder / "all.txt"]

    monkeypatch.setitem(BENCHMARKS, "quiz", replace(quiz, submit=submit))
    evaluate_checkpoint(workspace / "model", ["quiz"], options)
    (result,) = Path(options.output).glob("quiz/result-*.json")
    (name,) = json.loads(result.read_text())["submission"]
    assert (result.parent / name).read_text() == "7"


@pytest.mark.parametrize("error", [ValueError("it needs a package"), OSError(28, "No space left on device")])
def test_a_submission_that_cannot_be_written_costs_no_score(error, workspace, quiz, options, monkeypatch):
    def submit(questions, answers, folder: Path) -> list[Path]:
        raise error

    monkeypatch.setitem(BENCHMARKS, "quiz", replace(quiz, submit=submit))
    text = evaluate_checkpoint(workspace / "model", ["quiz"], options)
    assert "\n| quiz " in text and "quiz: the files for the server were not all written" in text
    assert error.args[-1] in text and "quiz/submission-" in text
    assert "for the server" not in evaluate_checkpoint(workspace / "model", ["quiz"], replace(options, limit=2))  # not even tried


def test_a_benchmark_without_public_answers_is_for_its_server(workspace, quiz, options, questions, monkeypatch):
    def submit(asked, answers, folder: Path) -> list[Path]:
        folder.mkdir(exist_ok=True)
        (folder / "all.json").write_text(json.dumps(answers))
        return [folder / "all.json"]

    unknown = [replace(question, answer="") for question in questions]
    monkeypatch.setitem(BENCHMARKS, "quiz", replace(quiz, load=lambda folder: unknown, submit=submit, score=None))
    text = evaluate_checkpoint(workspace / "model", ["quiz"], options)
    (file,) = Path(options.output).glob("quiz/submission-*/all.json")
    assert (
        f"quiz: the right answers are not public, so there is no score. Upload {file}." in text
        and len(json.loads(file.read_text())) == 7
    )


def test_protocols_keep_results_of_their_own(workspace, quiz, options, asked):
    for protocol in ("official", "lmms-eval"):
        evaluate_checkpoint(workspace / "model", ["quiz"], replace(options, protocol=protocol))
    assert len(asked) == 7  # the prompts are the same
    assert {path.name.rpartition("-")[0] for path in Path(options.output).glob("quiz/result-*")} == {
        "result-official", "result-lmms-eval",
    }  # fmt: skip


def test_the_report_has_the_benchmarks_of_earlier_runs_of_the_same_model(workspace, quiz, options, monkeypatch):
    monkeypatch.setitem(BENCHMARKS, "other", replace(quiz, name="other"))
    evaluate_checkpoint(workspace / "model", ["quiz"], options)
    text = evaluate_checkpoint(workspace / "model", ["other"], options)
    assert text.count("\n| quiz ") == 1 and text.count("\n| other ") == 1
    text = evaluate_checkpoint(workspace / "model", ["other"], replace(options, image_aspect="pad"))
    assert "\n| quiz " not in text  # asked in another way
    text = evaluate_checkpoint(workspace / "model", ["other"], replace(options, limit=3))
    assert "\n| quiz " not in text and "3 questions at most" in text


def test_the_report_does_not_mix_data_of_two_places(workspace, quiz, options, monkeypatch, tmp_path):
    monkeypatch.setitem(BENCHMARKS, "other", replace(quiz, name="other"))
    for split in ("validation", "test"):
        (tmp_path / split).mkdir()
    validation, test = (replace(options, data_root=str(tmp_path / split)) for split in ("validation", "test"))
    evaluate_checkpoint(workspace / "model", ["quiz"], validation)
    (file,) = Path(options.output).glob("quiz/result-*")
    assert json.loads(file.read_text())["data_root"] == str(tmp_path / "validation")
    monkeypatch.chdir(tmp_path)
    text = evaluate_checkpoint(workspace / "model", ["other"], replace(options, data_root="validation"))
    assert "\n| quiz " in text and "left out" not in text  # one place, named in two ways
    for elsewhere in (test, options):
        text = evaluate_checkpoint(workspace / "model", ["other"], elsewhere)
        assert "\n| quiz " not in text and f"{file} is left out: it was asked with `data_root={tmp_path / 'validation'}`" in text


def test_moved_data_are_not_asked_anew(workspace, quiz, options, asked, tmp_path):
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        evaluate_checkpoint(workspace / "model", ["quiz"], replace(options, data_root=str(tmp_path / place)))
    assert len(asked) == 7


def test_the_report_does_not_mix_versions_of_a_rule(workspace, quiz, options, monkeypatch):
    monkeypatch.setitem(BENCHMARKS, "other", replace(quiz, name="other"))
    evaluate_checkpoint(workspace / "model", ["quiz"], options)
    monkeypatch.setitem(BENCHMARKS, "quiz", replace(quiz, version=2))
    text = evaluate_checkpoint(workspace / "model", ["other"], options)
    assert "\n| quiz " not in text and "is left out: the rule was quiz 1, and is now version 2" in text


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"settings": {}}', "\xff"])
def test_a_damaged_result_of_an_earlier_run_is_left_out_and_named(content, workspace, quiz, options, monkeypatch):
    monkeypatch.setitem(BENCHMARKS, "other", replace(quiz, name="other"))
    damaged = Path(options.output) / "other" / "result-official-0.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(content.encode("latin-1"))
    text = evaluate_checkpoint(workspace / "model", ["quiz"], options)
    assert "\n| quiz " in text and f"other: {damaged} is left out: it is damaged" in text


def test_a_full_disk_costs_no_score(workspace, quiz, options, monkeypatch):
    write = Path.write_text

    def full(path, text, **settings):
        if path.name.startswith(("result-", "report")):
            raise OSError(28, "No space left on device")
        return write(path, text, **settings)

    monkeypatch.setattr(Path, "write_text", full)
    text = evaluate_checkpoint(workspace / "model", ["quiz"], options)
    assert "\n| quiz " in text
    for name in ("result-official-[0-9a-f]+.json", "report.md"):
        assert re.search(name + ": No space left on device. It was not written: make room", text)


def test_changed_ids_are_asked_anew(workspace, quiz, options, questions, asked, monkeypatch):
    """The same texts and pictures under ids that have changed their places: old answers would be to other questions."""
    evaluate_checkpoint(workspace / "model", ["quiz"], options)
    turned = [replace(one, id=other.id, unit=other.id) for one, other in zip(questions, questions[::-1], strict=True)]
    monkeypatch.setitem(BENCHMARKS, "quiz", replace(quiz, load=lambda folder: turned))
    evaluate_checkpoint(workspace / "model", ["quiz"], options)
    assert len(asked) == 14


def test_all_mistakes_come_before_the_first_answer(workspace, quiz, options, questions, asked, monkeypatch, tmp_path):
    lost = [replace(questions[0], picture=FilePicture(str(tmp_path / "lost.png")))]
    monkeypatch.setitem(BENCHMARKS, "other", replace(quiz, name="other", load=lambda folder: lost))
    with pytest.raises(ValueError, match="other: 1 picture of 1 missing, first .*lost.png"):
        evaluate_checkpoint(workspace / "model", ["quiz", "other"], options)
    assert asked == []


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_a_picture_that_is_no_file_is_refused_before_it_is_waited_for(
    workspace, quiz, options, questions, asked, monkeypatch, kind
):
    Path(questions[0].picture.path).unlink()
    (os.mkfifo if kind == "pipe" else os.mkdir)(questions[0].picture.path)
    with pytest.raises(ValueError, match="quiz: image .*0.png is not a regular file"):
        evaluate_checkpoint(workspace / "model", ["quiz"], options)
    assert asked == []


def test_prompts_are_shown_without_weights(workspace, quiz, options, monkeypatch):
    monkeypatch.setattr(checkpoint_evaluation, "load_model", None)
    shown = dump_prompts(workspace / "model", ["quiz"], options)
    assert "quiz, question 'q0'" in shown and "<|user|><image>what color is the shape ?<|assistant|>" in shown
    rows = [json.loads(line) for line in (Path(options.output) / "quiz" / "prompts.jsonl").read_text().splitlines()]
    assert len(rows) == 7 and rows[2] == {"question_id": "q2", "prompt": "<|user|><image>what<|assistant|>"}


def test_questions_with_one_id_are_refused(workspace, quiz, options, questions, monkeypatch):
    twice = [*questions, questions[3]]
    monkeypatch.setitem(BENCHMARKS, "quiz", replace(quiz, load=lambda folder: twice))
    with pytest.raises(ValueError, match="quiz: 1 id occurs twice, first 'q3'"):
        evaluate_checkpoint(workspace / "model", ["quiz"], options)


def test_data_of_an_unknown_version_are_scored_on_request_only(workspace, quiz, options, monkeypatch):
    def load(folder):
        folder.note("quiz.json", b"x")
        return quiz.load(folder)

    monkeypatch.setitem(BENCHMARKS, "quiz", replace(quiz, load=load, counts=(8, 9000)))
    with pytest.raises(ValueError, match=r"quiz: 7 questions read, .* have 8 or 9,000 \(quiz.json md5 9dd4e461\w+ bytes 1\)"):
        evaluate_checkpoint(workspace / "model", ["quiz"], options)
    assert "| quiz" in evaluate_checkpoint(workspace / "model", ["quiz"], replace(options, any_version=True))


def test_a_text_only_model_is_no_model_for_pictures(quiz, options, tmp_path):
    make_language_model().save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="quiz needs a model that takes pictures; .*text is text-only"):
        evaluate_checkpoint(tmp_path / "text", ["quiz"], options)


def test_a_model_without_a_processor_is_refused(workspace, quiz, options):
    for file in (workspace / "model").iterdir():
        if "processor" in file.name or "token" in file.name:
            file.unlink()
    with pytest.raises(ValueError, match="has no processor that transformers can load"):
        evaluate_checkpoint(workspace / "model", ["quiz"], options)


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        (["vqa"], {}, "benchmarks: there is no 'vqa'; did you mean 'vqav2'. Choose from vqav2, gqa,"),
        (["easy-vqa", "easy-vqa"], {}, "benchmarks: name each benchmark once"),
        ([], {}, "at least one"),
        (["easy-vqa"], {"limit": -1}, "limit: -1 must be a whole number of at least 0; 0 asks all"),
        (["easy-vqa"], {"batch_size": 0}, "batch_size: 0 must be a whole number from 1"),
        (["easy-vqa"], {"workers": -1}, "workers: -1 must be a whole number from 0 to 128"),
        (["easy-vqa"], {"workers": 100_000}, "workers: 100000 must be a whole number from 0 to 128"),  # each takes memory
        (["easy-vqa"], {"protocol": "mine"}, "protocol: there is no 'mine'; choose from official, lmms-eval, vlmevalkit"),
    ],
)
def test_mistakes_are_named_before_anything_is_loaded(names, changes, message):
    for verb in (evaluate_checkpoint, dump_prompts):
        with pytest.raises(OptionError, match=message):
            verb("no/such/model", names, EvaluationOptions(**changes))


def test_mistakes_are_named_before_torch_is_imported():
    code = (
        "import sys\n"
        "from evomoe.evaluation.evaluate import evaluate_checkpoint\n"
        "try:\n    evaluate_checkpoint('no/such/model', ['vqa'])\n"
        "except ValueError as error:\n    print(error.option, {'torch', 'transformers'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "benchmarks set()\n"
