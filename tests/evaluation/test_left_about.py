"""Files that systems leave about in a folder, and paths in a dataset's cells that lead out of it."""

from pathlib import Path

import datasets
import official_files
import pytest
from official_files import RED

from evomoe.data.images import BadImageError
from evomoe.evaluation import BENCHMARKS, predictions
from evomoe.evaluation.data_folder import DataFolder
from evomoe.evaluation.pictures import CellPicture
from evomoe.evaluation.questions import load_questions
from evomoe.support.content import fingerprint
from evomoe.support.names import own_files

LEFT = [
    "._000001.txt",
    ".DS_Store",
    ".hidden.txt",
    "Thumbs.db",
    "desktop.ini",
    "README.txt",
    "readme.txt",
    "LICENSE.txt",
    "__MACOSX/._0.txt",
]
NOT_TEXT = b"\0\x05\x16\x07\xff\xfe"


def leave(folder: Path, names=LEFT) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(NOT_TEXT)


def load(path: Path):
    return load_questions(BENCHMARKS["mme"], DataFolder("mme", path), any_version=True)


@pytest.mark.parametrize("pattern", ["*", "*.txt", "**/*.txt"])
def test_what_is_left_about_is_no_file_of_the_user_s(tmp_path, pattern):
    leave(tmp_path)
    (tmp_path / "0.txt").write_text("mine")
    assert own_files(tmp_path, pattern) == [tmp_path / "0.txt"]


def test_mme_s_folders_may_have_them(tmp_path):
    official_files.mme(tmp_path / "mme")
    asked = load(tmp_path / "mme")
    for folder in [folder for folder in (tmp_path / "mme").rglob("*") if folder.is_dir()]:
        leave(folder)
    leave(tmp_path / "mme")
    assert [question.id for question in load(tmp_path / "mme")] == [question.id for question in asked]
    answers = {question.id: "Yes" for question in asked}
    BENCHMARKS["mme"].submit(asked, answers, tmp_path / "answers")
    leave(tmp_path / "answers")
    assert predictions.read(BENCHMARKS["mme"], asked, tmp_path / "answers") == answers


def test_a_parquet_folder_may_have_them(tmp_path):
    row = {"question_id": "OCR/1.png", "question": "Is it?", "category": "OCR", "image": official_files.encoded(RED)}
    official_files.write_parquet(tmp_path / "mme", {("default", "test"): [{**row, "answer": answer} for answer in ("Yes", "No")]})
    leave((file := next((tmp_path / "mme").rglob("*.parquet"))).parent, [f"._{file.name}", ".DS_Store", "Thumbs.db"])
    assert len(load(tmp_path / "mme")) == 2


def test_they_make_no_other_model(workspace):
    before = fingerprint(workspace / "model")
    leave(workspace / "model", ["._config.json", ".DS_Store", "README.txt", "._model.safetensors"])
    assert fingerprint(workspace / "model") == before


def cell(path: str | None, content: bytes | None = None, root: Path | None = None) -> CellPicture:
    rows = datasets.Dataset.from_list([{"image": {"bytes": content, "path": path}}])
    return CellPicture(rows.cast_column("image", datasets.Image(decode=False)), 0, "the picture", root=root)


def test_a_cell_s_path_stays_in_the_folder(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(official_files.encoded(RED))
    root = tmp_path / "data"
    root.mkdir()
    (root / "good.png").write_bytes(official_files.encoded(RED))
    for path in ("good.png", str(root / "good.png")):
        assert cell(path, root=root).open().size == cell("gone.png", official_files.encoded(RED)).open().size
        assert cell(path, root=root).fingerprint()
    for path in ("../secret.png", str(secret), "/etc/passwd", "a/../../secret.png"):
        for look in (lambda path=path: cell(path, root=root).open(), lambda path=path: cell(path, root=root).fingerprint()):
            with pytest.raises(BadImageError, match="image the picture: its path .* leaves the folder of the data"):
                look()
    with pytest.raises(BadImageError, match="leaves the folder of the data"):
        cell(str(secret)).open()
    with pytest.raises(BadImageError, match="image the picture is not there: its cell is empty"):
        cell(None, root=root).open()
