"""Experts per token.

Implements: Table 11 (all rows).
"""

from evomoe.paper.tables import rows
from evomoe.paper.tables.table import FROM_STAGE1, Row, Table

TABLE = Table(
    "11",
    "Experts per token",
    (
        Row("top1", "1", rows.EVOMOE, (76.9, 61.2, 63.3, 49.3, 87.1, 1315.6, 61.6)),
        Row(
            "top2",
            "2",
            FROM_STAGE1.but(num_experts_per_tok=2, gate="normalised"),
            (76.6, 61.0, 62.4, 48.8, 86.8, 1304.7, 60.9),
        ),
        Row("top1-probability", "1, weighted by its probability (ours)", FROM_STAGE1.but(gate="probability")),
    ),
    baseline="top1",
    notes=("With one expert its weight is 1 (straight-through gradient); with two, their probabilities divided by their sum.",),
    seeds=3,
)
