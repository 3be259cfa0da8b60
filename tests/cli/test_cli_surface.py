"""The command line: its whole surface as a snapshot, its errors, and every verb end to end on a tiny model.

The snapshot is tests/cli/cli_surface.txt. When a change to it is meant, write it anew: ``PYTHONPATH=src python tests/cli/test_cli_surface.py``
"""

import contextlib
import inspect
import io
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from unittest import mock

import pytest

from evomoe.cli import main
from evomoe.cli.listing import TABLES
from evomoe.cli.terminal import plain_warnings
from evomoe.recipe.named_recipes import RECIPES
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.row_options import RouterWarning

SNAPSHOT = Path(__file__).with_name("cli_surface.txt")


def help_of(*verb: str) -> str:
    """The help text of a verb: a line per heading, option and paragraph, whatever the width of the terminal."""
    out = io.StringIO()  # knows no encoding, so tyro draws its boxes with spaces
    with mock.patch.dict(os.environ, COLUMNS="100"), contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*verb, "--help"])
    entries, after_blank = [""], True
    for line in out.getvalue().splitlines():
        text, indent = line.strip(), len(line) - len(line.lstrip())
        starts_option = indent == 2 and re.match(r"-|\{|[A-Z]+( |$)", text)
        if text and not text.strip("-"):  # a rule under a heading
            continue
        if indent == 1 or starts_option or text.startswith("•") or after_blank:
            entries.append(text)
        else:
            entries[-1] += " " + text
        after_blank = not text
    return "\n".join(" ".join(entry.split()) for entry in entries if entry)


def verbs() -> list[str]:
    (names,) = re.findall(r"^usage: evomoe \[-h\] \{(.*)\}$", help_of(), flags=re.M)
    return names.split(",")


def surface() -> str:
    return (
        "\n\n".join(f"evomoe {' '.join(verb)}".rstrip() + "\n" + help_of(*verb) for verb in [(), *((v,) for v in verbs())]) + "\n"
    )


def test_the_surface_grows_only_by_decision():
    assert surface() == SNAPSHOT.read_text(encoding="utf-8"), f"Changed on purpose? See the top of {__file__}."


@pytest.mark.parametrize("width", ["40", "72", "300"])
def test_the_snapshot_does_not_depend_on_the_terminal(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", width)
    assert help_of("train") in SNAPSHOT.read_text(encoding="utf-8")


def test_the_snapshot_holds_names_and_defaults():
    text = SNAPSHOT.read_text(encoding="utf-8")
    for line in (
        "--num-experts INT E. Paper: 4. (default: 4)",
        "--stage0.learning-rate FLOAT peak, after warm-up; cosine decay. (default: 0.001)",
        "--dry-run, --no-dry-run print what would train, parameter counts, steps, memory and disk space; load no weights. (default: False)",
    ):
        assert line in text.splitlines()


def test_help_does_not_import_torch():
    code = (
        "import contextlib, io, sys\nfrom evomoe.cli import main\n"
        f"for verb in {[[], *([v] for v in verbs())]}:\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        main([*verb, '--help'])\n"
        "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_the_shell_can_complete_every_option(capsys):
    """The list of verbs alone is made without their options."""
    with pytest.raises(SystemExit):
        main(["--tyro-print-completion", "bash"])
    assert {"--stage1.learning-rate", "--num-experts", "--data-root"} <= set(re.findall(r"--[\w.-]+", capsys.readouterr().out))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["upcycle", "dense", "out", "--num-experts", "1"], "--num-experts: 1 is too few; a mixture needs at least 2."),
        (["train", "--model", "m", "--data", "d", "--output", "o", "--stages", "2", "1"], "--stages: [2, 1] must be some of"),
        (["eval", "model", "--benchmarks", "vqa"], "benchmarks: there is no 'vqa'; did you mean 'vqav2'? Choose from vqav2"),
        (["params", "./no/such"], "./no/such: there is no such folder"),
        (["train", "--model", "m", "--data", "d", "--output", "o", "--stage2.steps", "-5"], "--stage2.steps: -5 must be"),
        (
            ["train", "--model", "m", "--data", "d", "--output", "o", "--evolution.stop-fraction", "2"],
            "--evolution.stop-fraction: 2.0 must",
        ),
    ],
)
def test_an_error_is_one_line_without_a_traceback(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("evomoe: ") and message in error and "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["params", "no/such"], ["eval", "no/such"], ["upcycle", "no/such", "out"]])
def test_a_name_that_the_hub_does_not_give_is_one_sentence_with_what_to_do(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(arguments) == 1 and (error := capsys.readouterr().err)
    assert error.startswith("evomoe: no/such: there is no such folder, and the hub gives no such model (")
    assert error.endswith("); name a local folder, or, without a network, set HF_HUB_OFFLINE=1, so that nothing is waited for.\n")
    assert error.count("\n") == 1 and "Traceback" not in error
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(arguments) == 1 and capsys.readouterr().err.endswith("); name a local folder.\n")


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["upcycle", "a", "b", "--num-expert", "3"], "--num-experts"),
        (["train", "--model", "m", "--data", "d", "--output", "o", "--max-lenght", "3"], "--max-length"),
        (["list", "router"], "routers"),
        (["uppcycle"], "upcycle"),
    ],
)
def test_a_mistyped_name_names_the_nearest(arguments, nearest, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    captured = capsys.readouterr()
    assert exit_.value.code == 2 and nearest in captured.err + captured.out


def test_an_option_that_is_not_name_and_value_is_refused(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["upcycle", "a", "b", "--init-options", "rank"])
    assert exit_.value.code == 2
    assert "'rank' is not of the form name=value" in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_an_unknown_recipe_names_the_known_ones(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--recipe", "moe_llava"])
    assert exit_.value.code == 2
    known = f"did you mean 'moe-llava'? Choose from {', '.join(RECIPES)}, or name a recipe.json or a .yaml file.\n"
    assert capsys.readouterr().err == f"evomoe: --recipe: there is no 'moe_llava'; {known}"


def test_a_recipe_s_file_alone_runs_no_remote_code(workspace, capsys):
    recipe = Recipe(str(workspace / "model"), str(workspace / "data.json"), str(workspace / "out"), trust_remote_code=True)
    recipe.save(workspace / "recipe.json")
    arguments = ["train", "--recipe", str(workspace / "recipe.json"), "--dry-run"]
    with pytest.raises(SystemExit):
        main(arguments)
    assert "asks to run code from the model's repository. If you trust it, add --trust-remote-code" in capsys.readouterr().err
    for answer in ("--trust-remote-code", "--no-trust-remote-code"):
        assert main([*arguments, answer, "--image-root", str(workspace / "images")]) == 0


@pytest.mark.parametrize("table", TABLES)
def test_every_row_of_every_table_is_listed_with_what_it_is(table, capsys):
    from importlib import import_module

    from evomoe.evaluation import Benchmark

    module, name = TABLES[table]
    assert main(["list", table]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0].strip() for line in lines] == list(getattr(import_module(module), name))
    for line in lines:
        summary = line.split("  ", 1)[1].strip()
        assert ("Options: " in summary) is (table in ("routers", "inits"))
        assert len(summary) > 15 and summary != inspect.getdoc(Benchmark), line


@pytest.mark.parametrize("buffered", [True, False])
def test_a_reader_that_goes_away_causes_no_noise(buffered):
    read, write = os.pipe()
    os.close(read)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    if not buffered:
        environment["PYTHONUNBUFFERED"] = "1"
    command = [sys.executable, "-m", "evomoe.cli", "list", "recipes"]
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(write)
    assert (result.returncode, result.stderr) == (0, "")


TINY = ["--router-options.hypernet-width", "4", "--router-options.rank", "2"]


def train_arguments(workspace: Path, *more: str) -> list[str]:
    source = ["--model", str(workspace / "model"), "--data", str(workspace / "data.json")]
    return ["train", *source, "--image-root", str(workspace / "images"), "--output", str(workspace / "run"), *more]


def test_dry_run_shows_the_defaults_of_the_recipe(workspace, capsys):
    assert main(train_arguments(workspace, "--recipe", "moe-llava", "--dry-run")) == 0
    text = capsys.readouterr().out
    assert "4 experts, 2 per token, router linear, gate normalised" in text
    assert "Stage 1 (warmup)" in text and "Stage 3 (routing)" in text and "Stage 2" not in text
    assert "trains router+experts" in text and not (workspace / "run").exists()
    assert (
        main(
            train_arguments(
                workspace, "--recipe", "moe-llava", "--dry-run", "--num-experts-per-tok", "1", "--gate", "probability"
            )
        )
        == 0
    )
    assert "4 experts, 1 per token, router linear, gate probability" in capsys.readouterr().out
    assert main(train_arguments(workspace, "--dry-run")) == 0
    text = capsys.readouterr().out
    assert "router dtr, gate straight_through" in text and "Evolution: rule" in text


def test_a_recipe_can_be_named_with_an_equals_sign(workspace, capsys):
    assert main(train_arguments(workspace, "--recipe=qwen-moe", "--dry-run")) == 0
    assert "router linear, gate probability" in capsys.readouterr().out


def test_dry_run_refuses_what_the_run_would_refuse(workspace, capsys):
    for options, message in (
        (["--router", "dtrr"], "--router: there is no 'dtrr'"),
        (["--router-options.rank", "0"], "--router-options.rank: 0 must be at least 1."),
    ):
        assert main(train_arguments(workspace, "--dry-run", *options)) == 1
        assert message in capsys.readouterr().err


def test_upcycle_then_eval(workspace, capsys):
    pytest.importorskip("easy_vqa")
    sparse = workspace / "sparse"
    assert main(["upcycle", str(workspace / "model"), str(sparse), "--num-experts", "2", "--moe-layers", "1,3", *TINY]) == 0
    assert "EvoMoELlavaForConditionalGeneration, 2 experts in layers 1, 3, router dtr" in capsys.readouterr().out
    answers = workspace / "answers"
    assert main(["eval", str(sparse), "--limit", "6", "--batch-size", "4", "--output", str(answers)]) == 0
    assert "| easy-vqa, question type |" in capsys.readouterr().out
    (file,) = answers.glob("easy-vqa/answers-*.jsonl")
    assert len(file.read_text().splitlines()) == 6
    assert main(["upcycle", str(workspace / "model"), str(sparse)]) == 1
    assert capsys.readouterr().err.endswith("sparse exists already; name another folder.\n")


def test_upcycle_takes_options_of_the_initialiser(workspace, capsys):
    out = workspace / "sparse"
    assert (
        main(["upcycle", str(workspace / "model"), str(out), "--expert-init", "noise", "--init-options", "std=0.5", *TINY]) == 0
    )
    from safetensors.torch import load_file

    weights = load_file(out / "model.safetensors")
    prefix = "model.language_model.layers.0.mlp.experts"
    noise = weights[f"{prefix}.1.up_proj.weight"] - weights[f"{prefix}.0.up_proj.weight"]
    assert noise.std().item() == pytest.approx(0.5, rel=0.1)


def test_train_runs_resumes_and_refuses_its_own_output(workspace, capsys):
    stages = [
        f"--stage{n}.{name}={value}" for n in (2, 3) for name, value in (("steps", 2), ("batch-size", 4), ("accumulation", 1))
    ]
    arguments = train_arguments(workspace, "--stages", "2", "3", *stages, *TINY, "--trainer", "logging_steps=1", "use_cpu=true")
    assert main(arguments) == 0
    final = workspace / "run" / "stage3_routing" / "model"
    out = capsys.readouterr().out
    assert f"Trained model: {final}" in out and f"Report: {workspace / 'run' / 'report.md'}" in out
    assert (final / "model.safetensors").is_file()
    recipe = json.loads((workspace / "run" / "recipe.json").read_text())
    assert recipe["stage2"]["steps"] == 2 and recipe["moe"]["router_options"] == {"hypernet_width": 4, "rank": 2}
    assert recipe["trainer"] == {"logging_steps": 1, "use_cpu": True}
    assert main(arguments) == 1 and "--resume" in capsys.readouterr().err
    written = (final / "model.safetensors").stat().st_mtime_ns
    for again in (arguments, ["train", "--output", str(workspace / "run")]):  # the run's own recipe has the rest
        assert main([*again, "--resume"]) == 0 and (final / "model.safetensors").stat().st_mtime_ns == written


def test_compose_writes_a_llava(tmp_path, capsys):
    from tiny.parts import write_parts

    text, vision = write_parts(tmp_path)
    assert main(["compose", str(tmp_path / "out"), "--text", str(text), "--vision", str(vision)]) == 0
    out = capsys.readouterr().out
    assert "its projector" in out and f"evomoe train --model {tmp_path / 'out'} --stages 0 1 2 3" in out
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llava"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["upcycle", "./dense", "out"], "./dense: there is no such folder."),
        (["upcycle", "dense", "there"], "there exists already; name another folder."),
        (["compose", "out", "--text", "a/b/c", "--vision", "tower"], "a/b/c: there is no such folder."),
        (["eval", "/no/model"], "/no/model: there is no such folder."),
        (["score", "pope", "--predictions", "no.jsonl", "--annotations", "there"], "--predictions: there is no no.jsonl."),
        (["score", "pope", "--predictions", "there", "--annotations", "no"], "--annotations: there is no no."),
        (["train", "--model", "../m", "--data", "d", "--output", "o"], "../m: there is no such folder."),
        (["train", "--model", "m", "--data", "no.json", "--output", "o"], "no.json: there is no such file."),
        (["train", "--model", "m", "--data", "./saved:train", "--output", "o"], "./saved: there is no such folder."),
        (
            ["train", "--model", "m", "--data", "d", "--output", "o", "--stage2.data", "no.jsonl"],
            "no.jsonl: there is no such file.",
        ),
        (["train", "--model", "m", "--data", "d", "--output", "o", "--image-root", "no"], "--image-root: no is not a folder."),
        (["train", "--model", "m", "--data", "d", "--output", "there"], "--output: there is not empty and holds no recipe.json"),
    ],
)
def test_what_is_not_there_is_refused_before_anything_slow_is_imported(arguments, message, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").touch()
    code = (
        f"import sys\nfrom evomoe.cli import main\ncode = main({arguments!r})\n"
        "print(code, [name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert result.stdout.strip() == "1 []" and result.stderr.startswith(f"evomoe: {message}"), result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_what_the_package_warns_of_is_one_line(workspace, capsys):
    before = warnings.showwarning
    options = ["--router", "anyexperts", "--num-experts", "4", "--num-experts-per-tok", "2", "--gate", "straight_through"]
    assert main(["upcycle", str(workspace / "model"), str(workspace / "warned"), *options]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "warning" in line.lower()]
    assert len(said) == 1 and said[0].startswith("evomoe: warning: router 'anyexperts': with at most ")
    with pytest.warns(UserWarning, match="^theirs$"), plain_warnings():
        warnings.simplefilter("always")
        warnings.warn("theirs", stacklevel=1)
        for _ in range(2):
            warnings.warn("ours: choose `gate=probability`", RouterWarning, stacklevel=1)
    assert warnings.showwarning is before
    assert capsys.readouterr().err == "evomoe: warning: ours: choose --gate probability\n"


def test_the_version_is_told(capsys):
    import evomoe

    assert main(["--version"]) == 0 and capsys.readouterr().out == f"evomoe {evomoe.__version__}\n"


@pytest.mark.parametrize("arguments", [["--lr", "1e-4"], ["--lr=1e-4"]])
def test_a_learning_rate_for_no_stage_names_the_option_of_one(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["train", *arguments])
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and "--stage1.learning-rate" in error and "evomoe train --help" in error


def test_the_help_that_an_error_points_to_is_that_of_the_verb(capsys):
    with pytest.raises(SystemExit):
        main(["upcycle", "a", "b", "--zzzz", "3"])
    assert "evomoe upcycle --help" in capsys.readouterr().err


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def test_ctrl_c_says_how_to_go_on_where_there_is_a_way(workspace, monkeypatch, capsys):
    for function in (
        "evomoe.cli.listing.describe_table",
        "evomoe.evaluation.evaluate.evaluate_checkpoint",
        "evomoe.demo.run_demo",
    ):
        monkeypatch.setattr(function, interrupt)
    monkeypatch.setattr("evomoe.training.run.run", interrupt)
    for arguments, hint in (
        (["list", "recipes"], ""),
        (["eval", "model"], " The same command goes on where it stopped."),
        (["demo"], " The same command goes on where it stopped."),
        (train_arguments(workspace), " The same command starts anew."),
    ):
        assert main(arguments) == 130
        assert capsys.readouterr().err == f"evomoe: interrupted.{hint}\n"
    checkpoint = workspace / "run" / "stage2_evolution" / "checkpoints" / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").touch()
    (workspace / "run" / "recipe.json").touch()
    monkeypatch.setattr("evomoe.cli.verbs.check_paths", lambda *args: None)
    assert main(train_arguments(workspace)) == 130
    assert capsys.readouterr().err == "evomoe: interrupted. The same command with --resume goes on from the last checkpoint.\n"


if __name__ == "__main__":
    SNAPSHOT.write_text(surface(), encoding="utf-8")
