"""A study of our own, in the way of the paper's tables: the readings of Eq. 1, and when the experts stop following expert 1."""

from evomoe.paper.tables import rows
from evomoe.paper.tables.table import FROM_STAGE1, Row, Table

_COLLAPSED = FROM_STAGE1.but(allow_collapsed_experts=True)
"""Of readings that leave copies of expert 1, which Stage III would refuse."""

TABLE = Table(
    "readings",
    "Readings of Eq. 1",
    (
        Row("scaled_update", "a shorter step the same way (default)", rows.EVOMOE),
        Row("scaled_update-half", "the same, for the first half of Stage II", FROM_STAGE1.but(stop_fraction=0.5)),
        Row("ema", "a moving average of expert 1", _COLLAPSED.but(rule="ema")),
        Row("ema-half", "the same, for the first half of Stage II", FROM_STAGE1.but(rule="ema", stop_fraction=0.5)),
        Row("lookback", "between expert 1 before the last step and after it", _COLLAPSED.but(rule="lookback")),
        Row("literal", "Eq. 1 as printed, with the gradient", FROM_STAGE1.but(rule="literal")),
    ),
    average=True,
    baseline="scaled_update",
    notes=("All rows have the same expert 1 per seed; beside it, what is printed of each expert alone says how far they went.",),
)
