"""A fixture that kills a run in the middle."""

import pytest
from stop_at import dying

from evomoe.training.trainer import EvoMoETrainer


@pytest.fixture
def kill_at(monkeypatch):
    """Makes every stage die at the end of a step, until told otherwise."""
    wanted: dict[str, int] = {}
    monkeypatch.setattr(EvoMoETrainer, "__init__", dying(wanted))
    return wanted
