"""What is kept of a study: no folder of this machine, and beside what was kept before."""

import json
from pathlib import Path

import pytest
from tiny.study import TINY

from evomoe.paper.study.kept import collect, keep
from evomoe.paper.study.study import cells
from evomoe.paper.tables import TABLES


def test_what_is_kept_names_no_folder_of_this_machine(base, world):
    found = {"scores": {}, "average": 1.0, "run": {}}
    for table in ("2", "5"):
        chosen = cells(TABLES[table].rows, [0], TINY, {"": base}, {0: world}, "test")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "read_text", lambda path, **more: json.dumps(found))
            found_rows = collect(TABLES[table], chosen, Path("study"), {})
        kept = json.dumps(found_rows)
        assert str(world.parent) not in kept and "mini-world/train/stage2.json" in kept
        assert ("mini-world/train/stage1.json" in kept) == (table == "5")  # whose Stage II has other data in one row


def test_rows_that_differ_only_in_how_they_are_asked_have_recipes_of_their_own(base, world):
    found = {"scores": {}, "average": 1.0, "run": {}}
    chosen = cells(TABLES["10"].rows, [0], TINY, {"": base}, {0: world}, "test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_text", lambda path, **more: json.dumps(found))
        kept = collect(TABLES["10"], chosen, Path("study"), {})["rows"]
    assert kept["shuffle2"]["recipe"] == kept["moe-tuning"]["recipe"] | {"shuffle": 2}


def test_what_was_kept_stays_beside_what_is_new(tmp_path):
    def row(recipe, **seeds):
        return {"recipe": {"rates": recipe}, "seeds": seeds}

    def kept():
        return json.loads((tmp_path / "table2.json").read_text())["rows"]

    one = {"table": 2, "scale": "mini", "split": "test", "limit": 0, "rows": {"a": row((1,), s0=1)}, "experts": {}}
    keep(one, tmp_path)
    keep({**one, "rows": {"b": row((2,), s0=2)}}, tmp_path)
    assert set(kept()) == {"a", "b"}
    keep({**one, "rows": {"a": row((1,), s1=2)}}, tmp_path)
    keep({**one, "rows": {"a": row((1,), s1=3), "b": row((4,), s1=5)}}, tmp_path)
    assert kept()["a"]["seeds"] == {"s0": 1, "s1": 3} and kept()["b"]["seeds"] == {"s1": 5}  # b has another recipe now
    before = kept()
    for other, name in (({"limit": 5}, "table2-limit5"), ({"split": "validation", "limit": 5}, "table2-validation-limit5")):
        path, found = keep({**one, "rows": {"b": row((4,), s0=6)}, **other}, tmp_path)
        written = json.loads(path.read_text())
        assert path == tmp_path / f"{name}.json" and written["rows"] == {"b": {"recipe": {"rates": [4]}, "seeds": {"s0": 6}}}
        assert found["rows"].keys() == {"b"} and kept() == before
