"""``evomoe doctor`` says what is here, and names what is wrong."""

import importlib.metadata
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

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


def test_what_is_wrong_ends_with_an_error(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda: doctor.Findings(["evomoe"], ["torch is missing"]))
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err == "evomoe: wrong here:\n  torch is missing.\n"
