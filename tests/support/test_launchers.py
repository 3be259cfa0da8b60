"""Processes that do not know of each other are refused, whoever started them, before any of them writes."""

import os
import subprocess
import sys

import pytest
from small_runs import make_recipe

from evomoe import cli
from evomoe.support.processes import check_processes
from evomoe.training.run import run

VARIABLES = [
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMI_SIZE", "MV2_COMM_WORLD_RANK",
    "MV2_COMM_WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "FLUX_TASK_RANK", "FLUX_JOB_SIZE",
]  # fmt: skip
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
ALONE = [
    {},
    {"RANK": "0", "WORLD_SIZE": "1"},
    {"WORLD_SIZE": "1"},
    {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"},
    {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
    {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"},
    {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
]
KNOWN = [TORCHRUN, TORCHRUN | {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4"}, TORCHRUN | {"OMPI_COMM_WORLD_RANK": "1"}]
STRANGERS = [
    ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, "mpirun started this"),
    ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_RANK=1"),
    ({"PMI_RANK": "1"}, "PMI_RANK=1"),
    ({"MV2_COMM_WORLD_SIZE": "8"}, "MV2_COMM_WORLD_RANK=unset"),
    ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, "srun started this"),
    ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}, "srun started this"),
    ({"FLUX_TASK_RANK": "0", "FLUX_JOB_SIZE": "2"}, "flux run started this"),
    ({"RANK": "0", "WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "1"}, "mpirun started this"),
    ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2, and not RANK and LOCAL_RANK"),
    ({"RANK": "1", "WORLD_SIZE": "2"}, "not LOCAL_RANK"),
    ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0, and not RANK and WORLD_SIZE"),
    ({"RANK": "x"}, "RANK is 'x'"),
    ({"RANK": "-1", "WORLD_SIZE": "1"}, "RANK is '-1'"),
    ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK=2 and WORLD_SIZE=2"),
    ({"RANK": "0", "WORLD_SIZE": "0", "LOCAL_RANK": "0"}, "WORLD_SIZE=0"),
]


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def told(monkeypatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("variables", [*ALONE, *KNOWN], ids=str)
def test_a_process_alone_and_one_that_knows_the_others_go_on(monkeypatch, variables):
    told(monkeypatch, variables)
    check_processes()


@pytest.mark.parametrize(("variables", "message"), STRANGERS, ids=str)
def test_strangers_are_refused_by_every_verb_before_anything_is_written(workspace, monkeypatch, capsys, variables, message):
    told(monkeypatch, variables)
    model, out = str(workspace / "model"), str(workspace / "out")
    for arguments in (
        ["train", "--model", model, "--data", str(workspace / "data.json"), "--output", out],
        ["upcycle", model, out],
        ["eval", model, "--output", out],
    ):
        assert cli.main(arguments) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    with pytest.raises(ValueError, match="^The environment|started this as one of several"):
        run(make_recipe(workspace, "out"))
    assert not (workspace / "out").exists()


def test_a_program_that_is_started_twice_ends_at_once():
    """Accelerate would wait for the other processes, at an address that nobody told."""
    environment = os.environ | {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "evomoe.cli", "upcycle", "nowhere", "out"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 1 and "torchrun" in done.stderr and "Traceback" not in done.stderr


def test_doctor_says_so(monkeypatch, capsys):
    told(monkeypatch, {"PMI_RANK": "0", "PMI_SIZE": "2"})
    assert cli.main(["doctor"]) == 1
    assert "mpirun started this" in capsys.readouterr().err
