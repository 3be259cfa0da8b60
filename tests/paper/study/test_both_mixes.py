"""The two mixes in one file."""

import dataclasses
import json

from evomoe.paper.study.both_mixes import ensure_both
from evomoe.paper.tables.table import FROM_STAGE1, MIX


def test_both_mixes_have_as_many_records_in_random_order(tmp_path):
    (tmp_path / "train").mkdir()
    for stage, count in ((1, 40), (2, 25)):
        (tmp_path / "train" / f"stage{stage}.json").write_text(json.dumps([{"id": f"{stage}-{n}"} for n in range(count)]))
    file = tmp_path / "train" / "both.json"
    ensure_both(tmp_path, FROM_STAGE1)
    assert not file.exists()  # nobody needs it
    ensure_both(tmp_path, FROM_STAGE1.but(stage3=dataclasses.replace(FROM_STAGE1.stage3, data=MIX)))
    ids = [record["id"] for record in json.loads(file.read_text())]
    assert sorted(ids) == sorted([f"1-{n}" for n in range(25)] + [f"2-{n}" for n in range(25)])
    assert {"1", "2"} == {one[0] for one in ids[:10]}
    written = file.read_bytes()
    file.unlink()
    ensure_both(tmp_path, FROM_STAGE1.but(data=MIX))
    assert file.read_bytes() == written
