"""Processes that prepare data: what they cannot hand over, and how they end, never lets anyone wait."""

import os
import resource
import signal
import sys

import pytest
import torch

from evomoe.support.errors import OptionError
from evomoe.support.workers import mapped

pytestmark = pytest.mark.timeout(60)


def test_results_come_in_order_whatever_the_number_of_processes():
    for workers in (0, 1, 3):
        assert list(mapped(lambda n: n * n, range(7), workers)) == [n * n for n in range(7)]


def test_what_cannot_be_handed_over_ends_the_work(capfd):
    with pytest.raises(OptionError, match=r"workers: .* ended before its time\. .*fewer than 2\. .*/dev/shm .* or take 0"):
        list(mapped(lambda n: lambda: n, range(4), 2))
    assert "A batch could not be handed over: " in capfd.readouterr().err


def test_a_process_that_cannot_even_say_so_ends_as_well():
    def without_stderr(n):
        sys.stderr.close()
        return lambda: n

    with pytest.raises(OptionError, match="ended before its time"):
        list(mapped(without_stderr, range(4), 2))


@pytest.mark.parametrize("end", [lambda n: os._exit(3), lambda n: os.kill(os.getpid(), signal.SIGKILL)], ids=["exit", "killed"])
def test_a_process_that_ends_is_told(end):
    with pytest.raises(OptionError, match="ended before its time"):
        list(mapped(end, range(4), 2))


@pytest.mark.parametrize("room", [3, 24])
def test_a_limit_of_open_files_is_told(room):
    """Whether it is met when the processes start, or when they hand over."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + room, limits[1]))

    def many(n):
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)  # here, not where they are handed to
        return [torch.ones(1) for _ in range(40)]

    try:
        with pytest.raises(OptionError, match=r"workers: .* more open files .* fewer than 3, or allow more \(`ulimit -n"):
            for tensors in mapped(many, range(6), 3):
                assert tensors
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_other_errors_stay_what_they_are():
    with pytest.raises(ZeroDivisionError):
        list(mapped(lambda n: 1 // n, range(4), 2))
