"""What a table of the paper, or a study like one, is: rows that are recipes, with the published numbers beside them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from evomoe.analysis.intervention import Intervention
from evomoe.evaluation.average import paper_benchmarks
from evomoe.recipe.named_recipes import EVOMOE
from evomoe.recipe.recipe import Recipe
from evomoe.support.errors import OptionError

IN_SMALL = {benchmark.column: benchmark.name for benchmark in paper_benchmarks(mini=True)}
"""The small benchmark that stands for each of the paper's columns."""
SEVEN = tuple(IN_SMALL)
"""The paper's benchmarks, by its columns."""
FOUR = ("GQA", "SQA", "TextVQA", "POPE")

WARM_UP, FINE_TUNE, MIX = "warm-up", "fine-tune", "mix"
"""The two mixes, and both together: a scale says which data they are. Every row starts from the model of Stage I, which the
warm-up mix made."""

FROM_STAGE1 = EVOMOE.but(data=FINE_TUNE, stages=(2, 3))


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: what ``rows`` takes.
        label: what the table says.
        recipe: from the model of Stage I on; model, output, steps and batches are the scale's.
        published: the paper's numbers in the table's columns, AVG last if the table has it; None where it has none.
        intervention: what is changed in the trained model when it answers.
        width: another size of the model, as the scale names it.
        protocol: how many steps it takes in small. "equal": as many as every other row. "paper": as the paper has it, Stage II
            as long as the dense model is fine-tuned and Stage III on top; a row with one stage takes as many as these two.
        longer: how many times the steps of the other rows it takes, on as many times the records.
    """

    name: str
    label: str
    recipe: Recipe
    published: tuple[float | None, ...] = ()
    intervention: Intervention = Intervention()
    width: str = ""
    protocol: Literal["equal", "paper"] = "equal"
    longer: int = 1


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        name: the paper's number, or the name of a study of our own.
        columns: benchmarks.
        average: whether it has a column AVG.
        baseline: the row that the others are compared with.
        comparisons: further pairs of rows, each less the other, where one row stands for a question about the other.
        supplement: what else is made of the numbers that were kept, in Markdown, below the table.
        notes: where the paper disagrees with itself, or we had to choose.
        seeds: how many are run by default.
        counts_experts: whether it says how many real experts a token had.
    """

    name: str
    title: str
    rows: Sequence[Row]
    columns: tuple[str, ...] = SEVEN
    average: bool = False
    baseline: str = ""
    comparisons: tuple[tuple[str, str], ...] = ()
    supplement: Callable[[Mapping[str, Any]], str] | None = None
    notes: tuple[str, ...] = ()
    seeds: int = 1
    counts_experts: bool = False

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        assert len(set(names)) == len(names) and (not self.baseline or self.baseline in names), self.name
        assert {*chain.from_iterable(self.comparisons)} <= {*names}, self.name
        assert all(len(row.published) in (0, len(self.headings)) for row in self.rows), self.name

    @property
    def heading(self) -> str:
        """What stands above it."""
        return (f"Table {self.name}: " if self.name.isdigit() else "") + self.title

    @property
    def headings(self) -> tuple[str, ...]:
        return (*self.columns, "AVG") if self.average else self.columns

    def chosen(self, names: Sequence[str]) -> list[Row]:
        """The rows with these names, all if none is given.

        Raises:
            OptionError: there is no such row.
        """
        known = {row.name: row for row in self.rows}
        for name in names:
            if name not in known:
                raise OptionError("rows", f"table {self.name} has no row '{name}'; choose from {', '.join(known)}.")
        return [known[name] for name in names] or list(self.rows)
