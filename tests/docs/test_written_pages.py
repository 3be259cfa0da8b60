"""The pages that `make docs` writes: the results, a page a table, and the contents of the log."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
generate = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(generate)


def test_the_results_are_those_of_the_numbers_that_were_kept():
    pages = generate.results()
    for name, text in pages.items():
        assert (generate.DOCS / name).read_text(encoding="utf-8") == text, f"{name}: run `make docs`"
    written = {f"results/{path.name}" for path in (generate.DOCS / "results").glob("*.md")} - {"results/answers.md"}
    assert written == {*pages} - {"results.md"}, "a page without its numbers"


def test_the_contents_of_the_log_are_its_entries():
    assert (generate.DOCS / "log.md").read_text(encoding="utf-8") == generate.log(), "run `make docs`"


def test_an_entry_stands_on_the_page_of_its_day(tmp_path):
    (tmp_path / "2026-11-01.md").write_text("# Log of 2026-11-01\n\n## 2026-11-01: one thing\n\n## 2026-11-01: another\n")
    assert generate.log(tmp_path).endswith("## [2026-11-01](log/2026-11-01.md)\n\n- one thing\n- another\n")
    (tmp_path / "2026-11-02.md").write_text("## 2026-11-01: a third\n")
    with pytest.raises(ValueError, match="2026-11-02.md: the entry '2026-11-01: a third' must begin with '2026-11-02: '"):
        generate.log(tmp_path)


def test_rows_that_share_their_experts_share_a_line():
    shared = {"alone": [60.0, 62.0], "disagreement": 12.34, "best": 70.0, "whole": 61.5}
    header, lines = generate._experts_alone({"a/0": shared, "b/0": shared, "c/0": {"alone": [1.0, 2.0]}})
    assert lines == [["a/0, b/0", "60.0, 62.0", "12.3", "70.0", "61.5", "-0.5", "+0.5"], ["c/0", "1.0, 2.0", *[""] * 5]]
    assert len(header) == len(lines[0])
