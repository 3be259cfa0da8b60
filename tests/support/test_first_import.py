"""Every module of the package may be the first that is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

import evomoe

ROOT = Path(evomoe.__file__).parents[1]
NEED_AN_EXTRA = {"evomoe.evaluation.harness.lmms_eval_model", "evomoe.serving.app", "evomoe.serving.vllm_model"}
MODULES = sorted(
    {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in (ROOT / "evomoe").rglob("*.py")}
    - {"evomoe.cli.__main__", "evomoe.mini.__main__"}
    - NEED_AN_EXTRA
)

IN_TURN = """
import importlib, sys, traceback
for name in sys.argv[1:]:
    for loaded in [one for one in sys.modules if one.partition(".")[0] == "evomoe"]:
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except Exception:
        print(name, traceback.format_exc(limit=-2))
"""


def imported(code: str, *names: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True)
    return done.stdout + (done.stderr if done.returncode else "")


@pytest.mark.slow
def test_each_module_is_the_first_of_the_package_in_turn():
    assert len(MODULES) > 200 and imported(IN_TURN, *MODULES) == ""


@pytest.mark.parametrize("name", ["evomoe.families", "evomoe.auto", "evomoe.model.families", "evomoe.data.records"])
def test_it_is_the_first_of_a_process(name):
    """Before torch and transformers, which the package waits for."""
    assert imported(f"import {name}") == ""
