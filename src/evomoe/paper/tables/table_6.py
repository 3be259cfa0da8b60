"""Where MoE layers stand, a shared expert, what trains.

Implements: Table 6 (all rows).
"""

from dataclasses import replace

from evomoe.paper.tables import rows
from evomoe.paper.tables.table import FROM_STAGE1, Row, Table

TABLE = Table(
    "6",
    "Strategies of other mixtures of experts",
    (
        Row(
            "without-first",
            "without the first layer",
            FROM_STAGE1.but(moe_layers="without_first"),
            (76.3, 61.1, 62.4, 48.5, 86.4, 1285.6, 60.6),
        ),
        Row("shared", "shared expert", FROM_STAGE1.but(shared_expert=True), (76.2, 61.0, 62.6, 48.8, 86.6, 1306.8, 60.8)),
        Row(
            "stage2-text",
            "attention and FFNs train in Stage II",
            FROM_STAGE1.but(stage2=replace(FROM_STAGE1.stage2, train="text")),
            (75.2, 61.2, 63.8, 46.8, 86.4, 1263.8, 61.9),
        ),
        Row(
            "stage3-experts",
            "the experts train in Stage III too",
            FROM_STAGE1.but(stage3=rows.MOE_TUNING.stage3),
            (77.0, 60.9, 62.3, 48.4, 86.5, 1271.2, 60.9),
        ),
        Row("all-layers", "MoE in all layers", FROM_STAGE1.but(moe_layers="all"), (74.4, 61.0, 62.5, 47.6, 86.3, 1280.1, 60.4)),
        Row("evomoe", "EvoMoE", rows.EVOMOE, (76.9, 61.2, 63.3, 49.3, 87.1, 1315.6, 61.6)),
    ),
    baseline="evomoe",
)
