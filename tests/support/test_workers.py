"""Processes that prepare data: what they cannot hand over, and how they end, never lets anyone wait."""

import os
import signal

import pytest

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


@pytest.mark.parametrize("end", [lambda n: os._exit(3), lambda n: os.kill(os.getpid(), signal.SIGKILL)], ids=["exit", "killed"])
def test_a_process_that_ends_is_told(end):
    with pytest.raises(OptionError, match="ended before its time"):
        list(mapped(end, range(4), 2))


def test_other_errors_stay_what_they_are():
    with pytest.raises(ZeroDivisionError):
        list(mapped(lambda n: 1 // n, range(4), 2))
