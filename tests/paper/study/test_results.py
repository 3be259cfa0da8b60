"""A table in Markdown, each row compared with its baseline seed by seed."""

from evomoe.paper.study.results import render
from evomoe.paper.tables import rows
from evomoe.paper.tables.table import Row, Table


def test_rows_are_compared_seed_by_seed():
    four = (
        Row("a", "A", rows.DENSE, (50.0,)),
        Row("b", "B", rows.EVOMOE),
        Row("c", "C", rows.EVOMOE),
        Row("d", "D", rows.EVOMOE),
    )
    pairs = (("c", "b"), ("b", "d"), ("d", "b"))
    table = Table("2", "t", four, columns=("GQA",), baseline="a", comparisons=pairs)
    scores = {"a": (1.0, 2.0, 3.0), "b": (2.0, 4.0, 6.0), "c": (1.0, 2.0)}  # d was not run
    found = {
        "rows": {
            name: {"label": name, "seeds": {str(n): {"scores": {"mini-gqa": v}, "average": v} for n, v in enumerate(values)}}
            for name, values in scores.items()
        }
    }
    first, second, third, *further = render(table, found).splitlines()[2:]
    assert "2.0 ± 1.0 (50)" in first and "+2.00 [-0.48, +4.48]" in second and "-0.50" not in third
    assert further[0] == "" and "| rows " in further[1] and len(further) == 4
    assert "| c - b " in further[3] and "-1.50 [-7.85, +4.85]" in further[3]  # t(1) = 12.706, s = 0.707
