"""The processes that share an evaluation."""

from types import SimpleNamespace

import pytest
import torch

from evomoe.evaluation import processes
from evomoe.evaluation.evaluate import evaluate_checkpoint


def test_processes_that_cannot_be_joined_are_refused(workspace, quiz, options, monkeypatch):
    """As under torchrun on an accelerator for which accelerate has no way to join them."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    state = SimpleNamespace(num_processes=1, device=torch.device("mps"))
    monkeypatch.setattr(processes, "PartialState", lambda **settings: state)
    with pytest.raises(ValueError, match="2 processes were started, and accelerate cannot join them on 'mps'"):
        evaluate_checkpoint(workspace / "model", ["quiz"], options)


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_processes_meet_on_the_device_that_computes(device, monkeypatch):
    asked = []
    state = SimpleNamespace(num_processes=1, device=torch.device(device))
    monkeypatch.setattr(processes, "best_device", lambda: torch.device(device))
    monkeypatch.setattr(processes, "PartialState", lambda **settings: asked.append(settings["cpu"]) or state)
    assert processes.this_process() is state and asked == [device == "cpu"]


def test_processes_share_the_questions(workspace, quiz, options, asked, monkeypatch):
    """What one of two processes answers; the other's part is asked by a second one."""

    class State:
        device, num_processes = torch.device("cpu"), 2

        def __init__(self, cpu: bool, timeout) -> None:
            assert cpu is not torch.accelerator.is_available()  # without it, accelerate joins no processes there
            self.process_index, self.is_main_process = rank, rank == 0

        def wait_for_everyone(self) -> None:
            pass

    monkeypatch.setattr(processes, "PartialState", State)
    rank = 1
    assert evaluate_checkpoint(workspace / "model", ["quiz"], options) == "" and len(asked) == 3
    monkeypatch.setattr(State, "num_processes", 1)
    rank = 0
    assert "\n| quiz " in evaluate_checkpoint(workspace / "model", ["quiz"], options) and sorted(asked) == sorted(set(asked))
