"""Sizes of the noise at the start, and of expert dropout.

Implements: Table 14 (all rows).
"""

from evomoe.paper.tables import rows
from evomoe.paper.tables.table import FOUR, Row, Table

_NOISE = {
    1e-5: (60.8, 63.1, 48.0, 86.5),
    1e-4: (61.3, 62.2, 47.5, 86.4),
    1e-3: (61.2, 63.1, 47.4, 85.5),
    1e-2: (60.4, 58.7, 47.1, 85.1),
    1e-1: (58.5, 51.1, 45.5, 84.3),
}
_DROPOUT = {
    0.1: (60.6, 62.1, 47.5, None),
    0.2: (60.5, 62.2, 47.4, None),
    0.3: (60.6, 62.1, 47.7, None),
    0.4: (60.4, 62.0, 47.4, None),
    0.5: (60.3, 62.0, 47.2, None),
}

TABLE = Table(
    "14",
    "Noise and dropout",
    (
        *(
            Row(f"noise{std:g}", f"noise {std:g}", rows.MOE_TUNING.but(expert_init="noise", init_options={"std": std}), numbers)
            for std, numbers in _NOISE.items()
        ),
        *(
            Row(f"dropout{share:g}", f"dropout {share:g}", rows.MOE_TUNING.but(expert_dropout=share), numbers)
            for share, numbers in _DROPOUT.items()
        ),
    ),
    columns=FOUR,
    notes=("Our copy of the paper cuts off the POPE column of the dropout half.",),
)
