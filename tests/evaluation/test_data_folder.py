"""Folders of data: what is noted of a file, and the messages for one that is missing, unknown, or not the published one."""

import hashlib
import shutil

import official_files
import pytest
from official_files import RED

from evomoe.evaluation import BENCHMARKS
from evomoe.evaluation.benchmarks import mmbench
from evomoe.evaluation.data_folder import DataFile, DataFolder, MissingDataError
from evomoe.evaluation.questions import load_questions


def load(name, path):
    folder = DataFolder(name, path)
    return load_questions(BENCHMARKS[name], folder, any_version=True), folder


def test_parquet_is_what_lies_in_the_folder_now(tmp_path):
    """Another folder of the same name, or this one before its file was changed, has other answers."""
    row = {"question_id": "OCR/1.png", "question": "Is it?", "category": "OCR", "image": official_files.encoded(RED)}
    for place in ("one", "two"):
        for answers in ("Yes", "No"), ("No", "Yes"):
            rows = [{**row, "answer": answer} for answer in answers]
            official_files.write_parquet(tmp_path / place / "mme", {("default", "test"): rows})
            questions, _ = load("mme", tmp_path / place / "mme")
            assert tuple(question.answer.capitalize() for question in questions) == answers


def test_parquet_is_known_by_its_content(tmp_path):
    """Wherever it lies, and however old it is."""

    def fingerprint(root):
        _, folder = load("pope", root / "pope")
        ((_, facts),) = folder.read.items()
        return facts["fingerprint"]

    for place in ("one", "two"):
        official_files.parquet("pope", tmp_path / place / "pope")
    one = fingerprint(tmp_path / "one")
    assert fingerprint(tmp_path / "two") == one
    (file,) = (tmp_path / "two").rglob("*.parquet")
    shutil.copy(file, file.with_name("test-00000-of-00002.parquet"))
    shutil.copy(file, file.with_name("test-00001-of-00002.parquet"))
    readme = tmp_path / "two/pope/README.md"
    readme.write_text(readme.read_text().replace("-00000-of-00001", "-00000-of-00002"))
    renamed = fingerprint(tmp_path / "two")
    readme.write_text(readme.read_text().replace("-00000-of-00002", "-00001-of-00002"))
    assert len({one, renamed, fingerprint(tmp_path / "two")}) == 3
    rows = official_files.pope_rows(("adversarial", "popular", "random"))
    official_files.write_parquet(tmp_path / "one/pope", {("default", "test"): rows})
    assert fingerprint(tmp_path / "one") != one


def test_a_table_of_mmbench_with_the_published_md5_is_right_whatever_its_rows(tmp_path, monkeypatch):
    file = tmp_path / "mmbench/mmbench_dev_20230712.tsv"
    official_files.mmbench(file.parent, official_files.mmbench_rows()[:-1])
    md5 = hashlib.md5(file.read_bytes()).hexdigest()
    monkeypatch.setattr(mmbench, "TABLES", (DataFile(file.name, "there", md5),))
    assert len(load_questions(BENCHMARKS["mmbench"], DataFolder("mmbench", file.parent))) == 4
    monkeypatch.setattr(mmbench, "TABLES", (DataFile(file.name, "there"),))
    with pytest.raises(ValueError, match="lacks rotation 2"):
        load_questions(BENCHMARKS["mmbench"], DataFolder("mmbench", file.parent))
    official_files.mmbench(file.parent)
    with pytest.raises(ValueError, match="mmbench: 5 questions read, but the known versions have"):
        load_questions(BENCHMARKS["mmbench"], DataFolder("mmbench", file.parent))


def test_messages_name_the_first_files_of_many(tmp_path):
    folder = DataFolder("mme", tmp_path)
    for number in range(5):
        folder.note(f"{number}.txt", b"")
    assert folder.files == "0.txt, 1.txt, 2.txt and 2 more files"
    with pytest.raises(ValueError, match=r"1 question read, .*\(0.txt md5 .*; 2.txt md5 \w+ bytes 0\)"):
        folder.check_version(1, (2,))


def test_missing_data_are_one_sentence(tmp_path):
    folder = DataFolder("mmbench", tmp_path)
    with pytest.raises(MissingDataError) as caught:
        BENCHMARKS["mmbench"].load(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert f"into {tmp_path}: mmbench_dev_20230712.tsv (from https" in message
    assert "MMBench_DEV_EN.tsv, MD5 b6caf1133a01c6bb705cf753bb527ed8)" in message
    assert f"the parquet: hf download --repo-type dataset lmms-lab-encoder/MMBench --local-dir {tmp_path}" in message
    with pytest.raises(MissingDataError, match="fetch the parquet .about 510 MB.: hf download"):
        BENCHMARKS["pope"].load(DataFolder("pope", tmp_path))


def test_the_small_sets_are_not_looked_for_where_the_real_ones_are_published(tmp_path):
    with pytest.raises(
        MissingDataError, match=f"^mini-pope: its files are not in {tmp_path}. evomoe makes .* leave `data_root` out"
    ):
        BENCHMARKS["mini-pope"].load(BENCHMARKS["mini-pope"].data(tmp_path))


def test_a_name_makes_no_small_set(tmp_path):
    with pytest.raises(MissingDataError, match="^mini-own: its data are not in .*hf download --repo-type dataset me/own "):
        DataFolder("mini-own", tmp_path).parquet("me/own", None, "test")


def test_a_file_for_a_benchmark_that_reads_none_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"x.json: easy-vqa reads no file of that name\. Its data ship in a package: name any folder\.$"
    ):
        DataFolder("easy-vqa", tmp_path / "x.json").check_file()
