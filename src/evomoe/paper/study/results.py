"""What a study found, shown as a table: each row beside the paper's numbers, and compared with the baseline seed by seed."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from evomoe.paper.tables.comparison import paired_difference, real_experts, with_interval
from evomoe.paper.tables.table import IN_SMALL, Row, Table
from evomoe.support.text import markdown_table


def render(table: Table, found: Mapping[str, Any]) -> str:
    """The table in Markdown: ours as mean ± standard deviation over the seeds, the paper's number in parentheses.

    Below it stand the table's further comparisons.
    """
    rows = found["rows"]
    parts = [markdown_table(_header(table), [_line(table, row, rows) for row in table.rows if row.name in rows])]
    further = [
        [f"{one} - {other}", _difference(rows[one]["seeds"], rows[other]["seeds"])]
        for one, other in table.comparisons
        if one in rows and other in rows
    ]
    if further:
        parts.append(markdown_table(["rows", "difference of AVG"], further))
    if table.supplement and (supplement := table.supplement(found)):
        parts.append(supplement)
    return "\n\n".join(parts)


def _header(table: Table) -> list[str]:
    header = ["row", "seeds"]
    if table.counts_experts:
        header.append("real experts")
    header += table.headings
    if not table.average:
        header.append("AVG")
    if table.baseline:
        header.append(f"AVG - {table.baseline}")
    return header


def _line(table: Table, row: Row, rows: Mapping[str, Any]) -> list[str]:
    """A row's cells below ``_header``."""
    seeds = rows[row.name]["seeds"]
    cells = [f"`{row.name}` {row.label}", str(len(seeds))]
    if table.counts_experts:
        cells.append(_spread([real_experts(seed) for seed in seeds.values()], digits=2))
    for heading, paper in zip(table.headings, row.published or [None] * len(table.headings), strict=True):
        values = [_value(seed, heading) for seed in seeds.values()]
        cells.append(_spread(values) + (f" ({paper:g})" if paper is not None else ""))
    if not table.average:
        cells.append(_spread([seed["average"] for seed in seeds.values()]))
    if table.baseline:
        cells.append(_difference(seeds, rows[table.baseline]["seeds"]) if row.name != table.baseline else "")
    return cells


def _value(seed: Mapping[str, Any], heading: str) -> float:
    return seed["average"] if heading == "AVG" else seed["scores"][IN_SMALL[heading]]


def _spread(values: Sequence[float], digits: int = 1) -> str:
    mean = statistics.mean(values)
    return f"{mean:.{digits}f}" + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def _difference(ours: Mapping[str, Any], baseline: Mapping[str, Any]) -> str:
    common = [seed for seed in ours if seed in baseline]
    if not common:
        return ""
    return with_interval(*paired_difference([ours[s]["average"] for s in common], [baseline[s]["average"] for s in common]))
