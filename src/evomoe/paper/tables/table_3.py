"""Each expert alone, evolved with fixed beta.

Implements: Table 3 (all rows).
"""

from evomoe.analysis.intervention import Intervention
from evomoe.paper.tables.table import FROM_STAGE1, Row, Table

_EVOLVED = FROM_STAGE1.but(stages=(2,), beta_ranges=((0.9, 0.9), (0.8, 0.8), (0.7, 0.7)))

TABLE = Table(
    "3",
    "Each expert of Stage II alone",
    (
        Row("expert1", "expert 1", _EVOLVED, (76.3, 61.0, 62.1, 48.2, 86.4, 1286.7, 59.7), Intervention(expert=0)),
        Row("expert2", "expert 2, beta 0.9", _EVOLVED, (76.4, 60.8, 62.7, 48.6, 87.3, 1305.7, 58.4), Intervention(expert=1)),
        Row("expert3", "expert 3, beta 0.8", _EVOLVED, (76.7, 60.9, 62.4, 49.0, 86.6, 1297.3, 61.4), Intervention(expert=2)),
        Row("expert4", "expert 4, beta 0.7", _EVOLVED, (77.1, 61.2, 62.8, 48.7, 86.4, 1284.5, 59.5), Intervention(expert=3)),
    ),
    baseline="expert1",
    notes=("The paper labels expert 1 with beta = 1.0, where Table 15 gives its numbers to beta = 0.",),
    seeds=3,
)
