"""A fixture that kills a run in the middle."""

import pytest
from stop_at import StopAt

from evomoe.training.trainer import EvoMoETrainer


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
