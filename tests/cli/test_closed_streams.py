"""Streams that whoever starts a command has closed."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("closed", [[1], [0, 1], [0, 1, 2]])
def test_streams_that_are_closed_are_no_fault(closed):
    """As schedulers close them. What no one can read is told to no one, and errors do not take the place of results."""
    closing = " ".join(f"{number}>&-" for number in closed)
    for arguments, code in (("list recipes", 0), ("recipe nowhere.yaml", 1)):
        result = subprocess.run(
            ["sh", "-c", f"{sys.executable} -m evomoe.cli {arguments} {closing}"], capture_output=True, text=True, check=False
        )
        assert (result.returncode, result.stdout) == (code, "") and "Traceback" not in result.stderr, result.stderr


def test_errors_are_no_results_where_stderr_is_closed():
    command = f"{sys.executable} -m evomoe.cli recipe nowhere.yaml 2>&-"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_disk_that_is_full_behind_stdout_is_named(unbuffered, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    result = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m evomoe.cli list recipes > /dev/full"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1 and result.stderr.startswith("evomoe: what goes to stdout: No space left on device. ")
    assert result.stderr.count("\n") == 1
