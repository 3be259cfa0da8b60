"""Names that no file can have are one sentence with the name, wherever they are given."""

import pytest

from evomoe import cli

ODD = ["a" * 300, "a/" * 3000]


@pytest.mark.parametrize("name", ODD, ids=["long", "deep"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--model", "NAME", "--data", "data.json", "--output", "run"],
        ["train", "--model", "model", "--data", "NAME", "--output", "run"],
        ["train", "--model", "model", "--data", "data.json", "--output", "NAME"],
        ["train", "--model", "model", "--data", "data.json", "--output", "run", "--image-root", "NAME"],
        ["train", "--model", "model", "--data", "data.json", "--output", "run", "--recipe", "NAME.json"],
        ["recipe", "NAME.yaml"],
        ["upcycle", "NAME", "out"],
        ["upcycle", "model", "NAME"],
        ["eval", "NAME"],
        ["eval", "model", "--output", "NAME"],
        ["score", "pope", "--predictions", "NAME", "--annotations", "images"],
        ["score", "pope", "--predictions", "data.json", "--annotations", "NAME"],
        ["analyze", "model", "--data", "NAME"],
        ["chat", "NAME", "--prompt", "what ?"],
        ["chat", "model", "--prompt", "what ?", "--image", "NAME"],
        ["look", "model", "--prompt", "what ?", "--out", "NAME"],
        ["compose", "NAME", "--text", "model", "--vision", "model"],
        ["compose", "out", "--text", "NAME", "--vision", "model"],
        ["attach", "NAME", "out"],
        ["export", "model", "NAME"],
        ["params", "NAME"],
    ],
    ids=lambda words: " ".join(words)[:40],
)
def test_a_name_that_no_file_can_have(workspace, monkeypatch, capsys, arguments, name):
    monkeypatch.chdir(workspace)
    try:
        assert cli.main([word.replace("NAME", name) for word in arguments]) in (1, 2)
    except SystemExit as ended:
        assert ended.code in (1, 2)
    error = capsys.readouterr().err
    assert "Errno" not in error and "Traceback" not in error and error.strip()
    assert name[:20] in error or repr(name)[1:5] in error, error


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--model", "model", "--data", "data.json", "--image-root", "images", "--output", "NAME"],
        ["upcycle", "model", "NAME"],
        ["look", "model", "--prompt", "what ?", "--out", "NAME"],
        ["eval", "model", "--output", "NAME"],
    ],
    ids=lambda words: words[0],
)
def test_a_name_that_is_no_text_is_refused_before_anything_is_done(workspace, monkeypatch, capsys, arguments):
    monkeypatch.chdir(workspace)
    assert cli.main([word.replace("NAME", "b\udcff") for word in arguments]) == 1
    assert "'b\\udcff' is not UTF-8 text" in capsys.readouterr().err
