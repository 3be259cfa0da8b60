"""One answer to which device computes, shown by accelerators that are not there: torch is made to report them."""

from types import SimpleNamespace

import pytest
import torch

from evomoe.analysis import analyze
from evomoe.analysis.intervention import Intervention
from evomoe.analysis.probe_options import ProbeOptions
from evomoe.demo import journey
from evomoe.paper.study import measure, provenance
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.run_folder import RunFolder
from evomoe.support.device import best_device, device_name, prepare
from evomoe.training import report
from evomoe.training.arguments import training_arguments
from evomoe.training.dry_run import describe


class Moved(Exception):
    """A model was asked to go to a device, which is all that these tests want to know."""


class Model:
    """Loads from anywhere and says where it is sent."""

    config = SimpleNamespace(image_token_id=0, moe=SimpleNamespace(moe_layers=[0]), num_hidden_layers=1)

    def requires_grad_(self, flag):
        return self

    def to(self, device):
        raise Moved(str(device))


@pytest.fixture(params=["xpu", "mps", "cuda", "cpu"])
def device(request, monkeypatch) -> str:
    """What torch reports, and nothing of it there."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: request.param != "cpu")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(request.param))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA H200")
    return request.param


@pytest.fixture
def flushed(monkeypatch) -> list[bool]:
    """The calls of ``set_flush_denormal``."""
    calls: list[bool] = []
    monkeypatch.setattr(torch, "set_flush_denormal", calls.append)
    return calls


def test_the_best_device_has_a_name_and_only_the_cpu_needs_preparing(device, flushed):
    assert best_device() == torch.device(device)
    prepare(best_device())
    assert flushed == ([True] if device == "cpu" else [])
    assert device_name() == {"cuda": "NVIDIA H200", "mps": "MPS", "xpu": "XPU"}.get(device, device_name(torch.device("cpu")))
    assert provenance.provenance()["machine"].startswith(device_name())


def test_training_is_held_to_the_cpu_only_where_there_is_nothing_better(device, tmp_path):
    arguments = training_arguments(Recipe("model", "data.json", "run"), 1, RunFolder(tmp_path).stage(1), num_records=8)
    assert arguments.use_cpu is (device == "cpu") and arguments.dataloader_pin_memory is (device == "cuda")


def test_a_dry_run_says_where_the_run_would_be(device, workspace):
    where = {"cpu": "CPU", "cuda": "NVIDIA H200"}.get(device, device.upper())
    files = {name: str(workspace / path) for name, path in (("model", "model"), ("data", "data.json"), ("output", "run"))}
    recipe = Recipe(**files, image_root=str(workspace / "images"), stages=(1,))
    assert f"Would run on {where}. Nothing was loaded or written." in describe(recipe)


def test_what_measures_goes_to_the_best_device(device, flushed, tmp_path, monkeypatch):
    for module in (analyze, journey):
        monkeypatch.setattr(module, "load_model", lambda *args: Model())
    monkeypatch.setattr(analyze, "is_sparse", lambda model: True)
    monkeypatch.setattr(report, "count_parameters", lambda *args: None)
    run = SimpleNamespace(
        recipe=Recipe("model", "data.json", "run", stages=(3,), expert_init="noise"),
        starts_sparse=False,
        prepared=lambda stage: None,
        load=lambda source: Model(),
    )
    for work in (
        lambda: analyze.load_sparse("anywhere", ProbeOptions("data.json")),
        lambda: journey._measure(tmp_path, tmp_path, tmp_path),
        lambda: report.report_run(run, tmp_path, None),
        lambda: measure.score_model(Model(), tmp_path, tmp_path, "test", 1, Intervention()),
    ):
        with pytest.raises(Moved, match=f"^{device}$"):
            work()
    assert flushed == ([True] if device == "cpu" else [])  # the measuring alone prepares it
