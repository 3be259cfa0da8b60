"""Epochs of Stages II and III.

Implements: Table 13 (all rows).
"""

from dataclasses import replace

from evomoe.paper.tables import rows
from evomoe.paper.tables.table import FROM_STAGE1, Row, Table

TABLE = Table(
    "13",
    "Epochs",
    (
        Row("one", "1", rows.EVOMOE, (76.9, 61.2, 63.3, 49.3, 87.1, 1315.6, 61.6)),
        Row(
            "two",
            "2",
            FROM_STAGE1.but(stage2=replace(FROM_STAGE1.stage2, epochs=2.0), stage3=replace(FROM_STAGE1.stage3, epochs=2.0)),
            (76.2, 62.4, 61.8, 48.4, 86.5, 1262.2, 61.0),
        ),
    ),
    baseline="one",
    notes=("In small, an epoch is the number of steps that every row takes.",),
)
