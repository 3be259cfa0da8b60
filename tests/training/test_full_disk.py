"""A disk that is full, or a limit on the size of files: one sentence with the file and what to do; what was there is whole."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("runs_without_room.py")


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> list[dict]:
    """What a run said whose largest files were a little too large, one after the other."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path_factory.mktemp("room")), "4"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_each_is_one_sentence_that_names_the_file(told):
    assert len(told) >= 4
    for one in told:
        assert one["kind"] == "DiskError" and one["message"].startswith(one["run"]) and "\n" not in one["message"], one
        assert "ake room" in one["message"] and one["message"].count("ake room") == 1, one


def test_after_room_was_made_the_same_run_goes_on_and_gives_the_same_weights(told):
    assert all(one["same weights"] for one in told)


def test_nothing_is_left_about(told):
    assert [one["left"] for one in told] == [[]] * len(told)
