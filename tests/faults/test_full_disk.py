"""A disk that is full, or a limit on the size of files: one sentence with the file and what to do; what was there is whole."""

import tempfile

import pytest
from scripts import TESTS, told_by


@pytest.mark.parametrize("limits", [4, pytest.param(1000, marks=[pytest.mark.faults, pytest.mark.timeout(7200)])])
def test_whatever_file_has_no_room_it_is_named_and_the_run_goes_on_when_there_is(tmp_path, limits):
    """Limits a byte below the size of each file that a run leaves, or of some."""
    told = told_by(TESTS / "faults" / "runs_without_room.py", tmp_path, limits)
    assert len(told) >= 4
    for one in told:
        assert (
            one["kind"] == "DiskError"
            and one["message"].startswith((one["run"], tempfile.gettempdir()))
            and "\n" not in one["message"]
        ), one
        assert one["message"].count("ake room") == 1 and one["same weights"] and one["left"] == [], one
