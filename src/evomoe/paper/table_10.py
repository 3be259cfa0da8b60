"""Routers whose outputs are permuted: does it matter which expert a token goes to?

Implements: Table 10 (all rows).
"""

from evomoe.paper import rows
from evomoe.paper.table import Row, Table

_SHUFFLES = (
    (76.2, 60.0, 62.3, 48.2, 86.4, 1288.5, 59.6, 65.3),
    (76.2, 60.1, 62.1, 48.2, 86.3, 1288.8, 59.4, 65.2),
    (76.2, 60.4, 62.6, 47.7, 86.5, 1290.2, 59.8, 65.4),
    (76.3, 60.6, 62.5, 48.3, 86.4, 1293.2, 59.5, 65.6),
    (76.1, 60.9, 62.6, 47.9, 86.5, 1289.9, 59.3, 65.5),
    (76.2, 60.6, 62.5, 47.8, 86.4, 1287.8, 59.6, 65.5),
    (76.1, 60.7, 62.6, 47.9, 86.3, 1286.9, 59.3, 65.4),
    (76.0, 60.1, 62.2, 47.9, 86.4, 12887.1, 59.2, 65.2),
)

TABLE = Table(
    "10",
    "Shuffled routers",
    (
        Row("moe-tuning", "MoE-tuning", rows.MOE_TUNING, (76.2, 61.0, 62.6, 48.0, 86.5, 1288.1, 59.4, 65.5)),
        *(
            Row(f"shuffle{n}", f"MoE-tuning, shuffle {n}", rows.MOE_TUNING, numbers, shuffle=n)
            for n, numbers in enumerate(_SHUFFLES, 1)
        ),
        Row("evomoe", "EvoMoE", rows.EVOMOE),
        *(Row(f"evomoe-shuffle{n}", f"EvoMoE, shuffle {n}", rows.EVOMOE, shuffle=n) for n in (1, 2, 3)),
    ),
    average=True,
    baseline="moe-tuning",
    comparisons=tuple((f"evomoe-shuffle{n}", "evomoe") for n in (1, 2, 3)),
    notes=(
        "MME of the eighth shuffle is printed as 12887.1.",
        "The paper shuffles MoE-tuning alone; the rows of EvoMoE are ours.",
    ),
    seeds=3,
)
