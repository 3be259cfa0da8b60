"""``evomoe doctor`` says what is here, and names what is wrong."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import evomoe
from evomoe.cli import doctor, main


def test_it_names_what_a_bug_report_needs(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("EVOMOE_CACHE", str(tmp_path / "not there yet"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(doctor, "_ROOM", 0)
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    for needed in (
        "evomoe 0.",
        "Python 3.",
        f"torch {torch.__version__}",
        "transformers 5.",
        "extra plots: there",
        "not there yet",
        "device: ",
    ):
        assert needed in told
    assert "HF_TOKEN=(set)" in told and "hf_secret" not in told
    assert told.endswith("Nothing is wrong.\n") and not (tmp_path / "not there yet").exists()


def test_each_extra_is_said_to_be_for_something():
    extras = {extra for extra, _ in doctor._requirements()} - {"", "dev"}
    assert extras == doctor._BRINGS.keys()


def test_packages_that_are_missing_or_too_old_are_named(monkeypatch):
    version = importlib.metadata.version

    def other(name: str) -> str:
        if name == "datasets":
            raise importlib.metadata.PackageNotFoundError(name)
        return "4.57.1" if name == "transformers" else version(name)

    monkeypatch.setattr(importlib.metadata, "version", other)
    found = doctor.examine()
    assert any(one.startswith("transformers is 4.57.1: pip install 'transformers>=5") for one in found.wrong)
    assert any(one.startswith("datasets is missing: pip install 'datasets>=4") for one in found.wrong)


def test_a_torchvision_that_does_not_import_is_named(monkeypatch):
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1" if name == "torchvision" else version(name))
    monkeypatch.setattr(doctor.importlib, "import_module", lambda name: (_ for _ in ()).throw(RuntimeError("operator nms")))
    assert any("torchvision cannot be imported (operator nms)" in one for one in doctor.examine().wrong)


def test_such_a_torchvision_ends_a_verb_in_the_same_sentence(tmp_path):
    told = tmp_path / "torchvision-0.99.0.dist-info" / "METADATA"
    for file, text in (
        (tmp_path / "torchvision" / "__init__.py", "raise RuntimeError('operator torchvision::nms does not exist')"),
        (told, "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.99.0\n"),
    ):
        file.parent.mkdir()
        file.write_text(text)
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    verb = [sys.executable, "-m", "evomoe.cli", "params", str(Path(evomoe.__file__).parent / "demo" / "dense_vlm")]
    ran = subprocess.run(verb, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    sentence = (
        "torchvision cannot be imported (operator torchvision::nms does not exist): install the one that goes with this torch"
    )
    assert ran.returncode == 1 and f"evomoe: {sentence}" in ran.stderr and "Traceback" not in ran.stderr


@pytest.mark.skipif(torch.accelerator.is_available(), reason="a machine whose torch has no accelerator")
def test_a_gpu_that_torch_cannot_use_is_named(monkeypatch):
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda self, **kwargs: str(self) == "/dev/nvidia0" or exists(self, **kwargs))
    assert any("this torch cannot use it" in one for one in doctor.examine().wrong)


def test_folders_without_room_or_leave_are_named(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1e9))
    assert any("has 1.0 GB left" in one for one in doctor.examine().wrong)
    monkeypatch.setattr(doctor.os, "access", lambda *args: False)
    assert any("cannot be written to" in one for one in doctor.examine().wrong)


def test_a_file_in_the_place_of_a_folder_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    assert f"{tmp_path}/file is a file, and {tmp_path}/file/hub is to be a folder" in doctor.examine().wrong


def test_what_is_wrong_ends_with_an_error(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda: doctor.Findings(["evomoe"], ["torch is missing"]))
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err == "evomoe: wrong here:\n  torch is missing.\n"
