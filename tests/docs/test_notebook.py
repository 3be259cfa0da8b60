"""The notebook: its cells run one after the other, and where evomoe is absent the first one says what to do."""

from pathlib import Path

import pytest

nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def notebook():
    return nbformat.read(ROOT / "examples" / "evomoe.ipynb", as_version=4)


def printed(cell) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


@pytest.mark.slow
def test_every_cell_runs(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("EVOMOE_QUICK", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    nbclient.NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    kinds = {kind for cell in code for output in cell.outputs for kind in output.get("data", {})}
    assert {"image/png", "text/html", "text/markdown"} <= kinds
    assert printed(code[1]).startswith("evomoe ") and "1,368,576 parameters" in printed(code[3])
    counted = next(printed(cell) for cell in code if "record_routing(model)" in cell.source)
    assert counted.count("text and image tokens by expert") == 4
    for run in ("first", "second"):
        assert (tmp_path / "evomoe-notebook" / run / "report.md").is_file()


def test_where_evomoe_is_absent_the_first_cell_installs_it(notebook, monkeypatch):
    first = next(cell for cell in notebook.cells if cell.cell_type == "code").source
    installed = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("subprocess.run", lambda command, check: installed.append(command[-1]))
    with pytest.raises(SystemExit, match="set SOURCE above"):
        exec(first, {})
    for source, wanted in (("git+https://a/b", "evomoe[mini,plots] @ git+https://a/b"), ("/x/y.whl", "/x/y.whl[mini,plots]")):
        exec(first.replace('SOURCE = ""', f'SOURCE = "{source}"'), {})
        assert installed[-1] == wanted


def test_the_notebook_is_kept_without_outputs(notebook):
    assert all(cell.outputs == [] and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")
