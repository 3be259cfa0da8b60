"""Designs of the router, on the same evolved experts.

Implements: Table 4 (all rows).
"""

from evomoe.paper.tables import rows
from evomoe.paper.tables.table import FOUR, FROM_STAGE1, Row, Table

TABLE = Table(
    "4",
    "Designs of the router",
    (
        Row("linear", "(a) linear", rows.EVOLUTION_LINEAR, (61.0, 62.6, 48.0, 86.5)),
        Row("modality", "(b) a linear one per modality", FROM_STAGE1.but(router="modality"), (61.2, 62.7, 48.3, 86.6)),
        Row("modality+shared", "(c) and a shared one", FROM_STAGE1.but(router="modality+shared"), (61.1, 62.2, 48.2, 86.4)),
        Row("dtr", "DTR", rows.EVOMOE, (61.2, 63.3, 49.2, 87.1)),
        Row("dtr+shared", "(d) DTR and a shared one", FROM_STAGE1.but(router="dtr+shared"), (60.9, 62.7, 48.4, 86.7)),
    ),
    columns=FOUR,
    baseline="linear",
    notes=(
        "The paper's row (a) repeats row (b) of Table 2, whose experts are copies; here all rows have the same evolved experts.",
        "DTR's TextVQA is 49.2 here and 49.3 elsewhere in the paper.",
    ),
    seeds=3,
)
