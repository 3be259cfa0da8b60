"""A run that is killed, or told to stop, at any moment goes on to the same bits.

``make test-faults`` tries as many moments as EVOMOE_MOMENTS says, 30 unless it is set; a quick test run tries a few.
"""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import TESTS, environment, told_by

DISTURBED = TESTS / "faults" / "disturbed_runs.py"
MANY = int(os.environ.get("EVOMOE_MOMENTS", "30"))


@pytest.mark.parametrize("moments", [2, pytest.param(MANY, marks=[pytest.mark.faults, pytest.mark.timeout(7200)])])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_at_whatever_moment_a_signal_comes_the_weights_are_the_same(tmp_path, number, moments):
    seed = random.randrange(10**6)
    told = told_by(DISTURBED, tmp_path, int(number), moments, seed)
    assert told["sent"] >= moments and told["runs"] >= 1
    assert told["failed"] == [] and told["differ"] == [], f"seed {seed}: {told}"


TWO = """
import os, signal, sys
from pathlib import Path
from small_runs import make_recipe
from transformers import TrainerCallback
from evomoe.training.run import run
from evomoe.training.trainer import EvoMoETrainer

folder, output, dies = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "dies"

class Death(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)

if dies:
    original = EvoMoETrainer.__init__
    EvoMoETrainer.__init__ = lambda self, *a, **k: (original(self, *a, **k), self.add_callback(Death()))[0]
recipe = make_recipe(folder, output, stages=(2,)).but(trainer={"ddp_backend": "gloo"})
run(recipe, resume="if begun", report=False)
"""


@pytest.mark.faults
def test_two_processes_of_which_one_dies_go_on_to_the_same_bits(tmp_path):
    from small_runs import changed
    from tiny import write_workspace

    write_workspace(tmp_path)
    (tmp_path / "two.py").write_text(TWO)

    def start(output: str, dies: str = "") -> subprocess.CompletedProcess:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--standalone"]
        command = [*torchrun, str(tmp_path / "two.py"), str(tmp_path), output, dies]
        return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=500)

    assert (straight := start("straight")).returncode == 0, straight.stderr[-3000:]
    assert start("disturbed", "dies").returncode != 0
    folder = tmp_path / "disturbed" / "stage2_evolution"
    assert [path.name for path in (folder / "checkpoints").glob("checkpoint-*")] == ["checkpoint-2"]
    assert json.loads(Path(tmp_path / "disturbed" / "identity.json").read_text())["processes"] == 2
    assert (again := start("disturbed")).returncode == 0, again.stderr[-3000:]
    assert changed(tmp_path / "straight" / "stage2_evolution" / "model", folder / "model") == set()
