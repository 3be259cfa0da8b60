"""Number of experts.

Implements: Table 12 (all rows).
"""

from evomoe.paper.tables import rows
from evomoe.paper.tables.table import FROM_STAGE1, Row, Table

TABLE = Table(
    "12",
    "Number of experts",
    (
        Row(
            "two",
            "2",
            FROM_STAGE1.but(num_experts=2, beta_ranges=FROM_STAGE1.evolution.beta_ranges[:1]),
            (76.5, 61.1, 62.5, 48.5, 86.6, 1302.6, 61.3),
        ),
        Row("four", "4", rows.EVOMOE, (76.9, 61.2, 63.3, 49.3, 87.1, 1315.6, 61.6)),
    ),
    baseline="four",
    notes=("The paper does not say which range of beta the one evolved expert of two has: the first, 0.9 to 0.99.",),
)
