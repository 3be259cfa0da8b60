"""Shuffles of Table 10, compared with a row's own routers."""

from evomoe.paper.tables.table_10 import mean_of_shuffles


def test_shuffles_are_compared_by_their_mean_seed_by_seed():
    def row(*averages):
        return {"seeds": {str(seed): {"average": value} for seed, value in enumerate(averages)}}

    found = {"moe-tuning": row(60.0, 70.0), "shuffle1": row(58.0, 70.0), "shuffle2": row(58.0, 66.0), "evomoe": row(50.0)}
    (line,) = mean_of_shuffles({"rows": found}).splitlines()[2:]
    assert [cell.strip() for cell in line.strip("|").split("|")] == ["moe-tuning", "2", "-2.00 [-2.00, -2.00]", "3 of 4"]
    found["evomoe-shuffle1"], found["shuffle2"] = row(51.0), row(58.0)
    moe, evomoe = mean_of_shuffles({"rows": found}).splitlines()[2:]
    assert " -2.00 " in moe and "2 of 2" in moe and " +1.00 " in evomoe and "0 of 1" in evomoe
    assert mean_of_shuffles({"rows": {"moe-tuning": row(60.0)}}) == ""
