"""Scores as tables for people."""

from collections.abc import Mapping, Sequence

from evomoe.evaluation.average import averages
from evomoe.evaluation.benchmark import Result
from evomoe.support.text import markdown_table


def score_table(title: str, results: Mapping[str, Result]) -> str:
    """Several models on one benchmark: a row per model, a column per row of the benchmark's first table, in percent."""
    groups = next(iter(next(iter(results.values())).tables.values()))
    counts = {name: int(row["questions"]) for name, row in groups.items()}
    total = next(iter(results.values())).questions
    header = [f"{title}, accuracy %", *(f"{name} ({count:,})" for name, count in counts.items()), f"all ({total:,})"]
    rows = []
    for model, result in results.items():
        table = next(iter(result.tables.values()))
        rows.append([model, *(f"{table[name]['accuracy']:.1f}" for name in counts), f"{result.score:.2f}"])
    return markdown_table(header, rows)


def summary_table(results: Sequence[Result]) -> str:
    """Several benchmarks of one model: a row per benchmark."""
    header = ["benchmark", "score", "±", "unit", "questions", "unparsable", "protocol", "scorer"]
    rows = [
        [
            result.benchmark, f"{result.score:.2f}", f"{result.standard_error:.2f}", result.unit, f"{result.questions:,}",
            f"{result.unparsable:,}", result.protocol, result.scorer,
        ]
        for result in results
    ]  # fmt: skip
    return markdown_table(header, rows)


def detail_tables(result: Result) -> list[str]:
    """A benchmark's sub-scores, a table each."""
    tables = []
    for title, groups in result.tables.items():
        columns = list(dict.fromkeys(column for row in groups.values() for column in row))
        rows = [[name, *(_number(row.get(column)) for column in columns)] for name, row in groups.items()]
        tables.append(markdown_table([f"{result.benchmark}, {title}", *columns], rows))
    return tables


def report(results: Sequence[Result]) -> str:
    """All tables of some results, the averages that they allow, and which of them no average allows."""
    tables = [summary_table(results), *(table for result in results for table in detail_tables(result))]
    means = averages({result.benchmark: result.score for result in results if not result.missing})
    parts = [
        f"{result.benchmark}: no questions of {', '.join(result.missing)} were asked, so that its score enters no AVG."
        for result in results
        if result.missing
    ] + [
        f"{result.benchmark}: not one answer could be read, so the score says nothing of what the model knows. Look at its answers."
        for result in results
        if 0 < result.questions == result.unparsable
    ]
    return "\n\n".join([*tables, *(f"AVG {mean:.2f} = {formula}" for formula, mean in means.items()), *parts])


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"
