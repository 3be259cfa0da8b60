"""Rows of JSON are found in their file as json reads them, whatever they are and however they are written."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evomoe.data.json_rows import JsonRows, json_lines, places_in_list, state_of
from evomoe.data.records import load_records

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("aä€😀\"\\,[]{}\n ", max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("aä\"", max_size=3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(VALUES, max_size=4),
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
    around=st.text(" \n\r\t", max_size=2),
    mark=st.sampled_from(["", "\ufeff"]),
)
def test_values_of_a_list_are_found_where_they_stand(tmp_path, rows, indent, ascii_only, around, mark):
    text = mark + around + json.dumps(rows, indent=indent, ensure_ascii=ascii_only) + around
    path = tmp_path / "rows.json"
    path.write_bytes(text.encode())
    places = places_in_list(text)
    assert places is not None
    with path.open("rb") as file:
        found = JsonRows(path, state_of(file), places)
    assert [*found] == found[:] == [found[number] for number in range(len(found))] == rows
    assert [*found.some(range(len(rows))[::-1])] == rows[::-1]


@pytest.mark.parametrize("text", ["", "{}", "[1 2]", "[1,]", "[,1]", "[1", "[1] 2", '[1, {"a" 2}]', "1", "[" * 100_000])
def test_what_is_no_whole_list_has_no_places(text):
    assert places_in_list(text) is None


@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
def test_a_file_that_changes_under_a_run_is_noticed(write_json, name):
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path = write_json([row] * 3, name)
    records = load_records(path)
    assert records[2].turns[1].text == "b"
    path.write_text(path.read_text().replace("b", "bb"))
    with pytest.raises(ValueError, match=rf"{name}: the file has changed since it was opened; start the run anew"):
        records[2]


def test_lines_know_their_numbers(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\n{"a": 1}\r\n\n[]\n')
    assert [*json_lines(path)] == [{"a": 1}, []] and json_lines(path)[-1] == []
    path.write_bytes(b'\n{"a": 1}\r\n\n[\n')
    with pytest.raises(ValueError, match="rows.jsonl, line 4"):
        json_lines(path)[1]
    with pytest.raises(IndexError):
        json_lines(path)[2]
