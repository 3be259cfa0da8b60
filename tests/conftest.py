"""Fixtures over the tiny models."""

import os
import sys

import pytest
import torch
from hypothesis import HealthCheck, settings
from tiny import QUICK, make, make_llava, write_workspace
from transformers import PreTrainedModel

# Processes of one test meet on this machine, whatever its name resolves to.
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")

# How long an example takes says how busy the machine is.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(params=QUICK)
def family(request) -> str:
    """A cross-section of the families in turn."""
    return request.param


@pytest.fixture
def dense(family) -> PreTrainedModel:
    """A tiny random dense model of each family, in evaluation mode."""
    return make(family)


@pytest.fixture
def llava() -> PreTrainedModel:
    """A tiny random dense LLaVA with a Llama decoder of 4 layers, in evaluation mode."""
    torch.manual_seed(0)
    return make_llava().eval()


@pytest.fixture
def workspace(tmp_path):
    """A folder with a tiny model, three pictures and a LLaVA JSON."""
    return write_workspace(tmp_path)
