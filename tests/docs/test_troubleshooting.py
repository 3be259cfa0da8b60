"""The sentences of docs/troubleshooting.md are those that the library says."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)
PLACEHOLDER = re.compile(r"\.\.\.|\b[A-Z]{1,}\b|\(.*?\)|\d[\d.:]*")


def said() -> str:
    """Every string of the package, the holes of f-strings left out."""
    found = []
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


SAID = said()


@pytest.mark.parametrize("row", ROWS)
def test_a_sentence_on_the_page_is_one_that_the_library_says(row):
    parts = [part.strip(" .,:;`'") for part in PLACEHOLDER.split(row)]
    parts = [part for part in parts if len(part.split()) >= 2]
    assert parts, row
    for part in parts:
        words = r"[\s\0]+".join(re.escape(word) for word in part.split())
        assert re.search(words, SAID), part


def test_there_are_the_sentences_that_one_is_most_likely_to_meet():
    assert len(ROWS) >= 18
