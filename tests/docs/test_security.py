"""docs/security.md: each line names a test, and the test is there."""

import inspect
import re
from pathlib import Path

from evomoe.cli import serving_verbs

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()


def test_every_line_has_its_test():
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")][2:]
    source = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    named = [re.findall(r"`(test_\w+)`", row) for row in rows]
    assert len(rows) > 10 and all(names and all(f"def {name}(" in source for name in names) for names in named)


def test_servers_listen_at_this_machine_alone():
    for verb in (serving_verbs.app, serving_verbs.serve_with([])):
        assert inspect.signature(verb).parameters["host"].default == "127.0.0.1"
