"""A fixture that kills a run in the middle."""

import pytest
from transformers import TrainerCallback

from evomoe.training.trainer import EvoMoETrainer


class StopAt(TrainerCallback):
    """Kills a run, without warning, after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise RuntimeError("killed")


@pytest.fixture
def kill_at(monkeypatch):
    """Makes every stage die at the end of a step, until told otherwise."""
    original = EvoMoETrainer.__init__
    wanted: dict[str, int] = {}

    def init(self, *args, **kwargs) -> None:
        original(self, *args, **kwargs)
        if kwargs["stage"] in wanted:
            self.add_callback(StopAt(wanted[kwargs["stage"]]))

    monkeypatch.setattr(EvoMoETrainer, "__init__", init)
    return wanted
