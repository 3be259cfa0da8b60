"""What is nearly right is answered with what was meant."""

import os

import pytest

from evomoe import cli
from evomoe.support.errors import no_such


def test_what_there_is_and_what_was_meant():
    assert no_such("heldout", ["vqa", "held-out"]) == "there is no 'heldout'; did you mean 'held-out'? Choose from vqa, held-out"
    assert no_such("x", ["vqa"], "part") == "there is no part 'x'; choose from vqa"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["trian", "--model", "m"], "there is no verb 'trian'; did you mean 'train'?"),
        (["eval", "model", "--benchmarks", "heldout"], "--benchmarks: there is no 'heldout'; did you mean 'held-out'?"),
        (["upcycle", "model", "out", "--router", "linaer"], "--router: there is no 'linaer'; did you mean 'linear'?"),
        (["upcycle", "model", "out", "--moe-layers", "al"], "--moe-layers: there is no 'al'; did you mean 'all'?"),
        (
            ["train", "--model", "model", "--data", "date.json", "--output", "o"],
            "date.json: there is no such file. Is data.json meant?",
        ),
        (["upcycle", "./modle", "out"], "./modle: there is no such folder. Is model meant?"),
        (["export", "model", "out", "--expert", "1"], "--expert: it goes with --to dense; leave it out, or add that."),
        (["look", "model", "--prompt", "what ?", "--out", "no/page.html"], "no is not a folder."),
        (["chat", "model", "--prompt", " "], "--prompt: There is nothing to answer; write a question."),
        (["attach", "model", "out"], "model: "),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_the_command_line_says_what_was_meant(workspace, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(workspace)
    try:
        assert cli.main(arguments) == 1
    except SystemExit as exit_:
        assert exit_.code == 2
    assert told in capsys.readouterr().err


def test_a_hub_name_that_is_nearly_a_folder_s_is_told_before_the_hub_is_asked(workspace, monkeypatch, caplog):
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cli.main(["params", "modle"]) == 1
    assert "There is no modle here, so the hub is asked. Is model meant?" in caplog.text


def test_a_folder_that_has_been_removed_is_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().err == "evomoe: the folder that you are in has been removed; go to another.\n"


def test_a_pipe_in_the_place_of_a_configuration_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("config.json")
    assert cli.main(["params", "config.json"]) == 1
    assert "config.json is not a regular file" in capsys.readouterr().err
