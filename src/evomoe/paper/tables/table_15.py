"""Values of beta: the one evolved expert of each, alone.

Implements: Table 15 (all rows).
"""

from evomoe.analysis.intervention import Intervention
from evomoe.paper.tables.table import FROM_STAGE1, Row, Table

_VALUES = {
    (0.0, 0.0): (76.3, 61.0, 62.1, 48.2, 86.4, 1286.7, 59.7),
    (0.9, 0.9): (76.8, 60.8, 62.7, 48.6, 87.3, 1290.7, 58.4),
    (0.8, 0.8): (76.4, 60.9, 62.4, 49.0, 86.6, 1277.3, 61.4),
    (0.7, 0.7): (76.9, 61.0, 62.8, 48.7, 86.4, 1284.5, 59.5),
    (0.4, 0.4): (76.3, 61.0, 62.2, 48.3, 86.5, 1285.9, 59.7),
    (0.2, 0.2): (76.3, 61.0, 62.1, 48.2, 86.4, 1286.1, 59.6),
    (0.9, 0.99): (76.7, 61.1, 63.0, 48.9, 87.0, 1300.7, 61.5),
}
# One run evolves them all from the same expert 1, so that they differ in nothing but beta.
_ALL = FROM_STAGE1.but(stages=(2,), num_experts=1 + len(_VALUES), beta_ranges=tuple(_VALUES))


def _name(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


TABLE = Table(
    "15",
    "Values of beta",
    tuple(
        Row(_name(*beta).replace(" ", ""), f"beta {_name(*beta)}", _ALL, numbers, Intervention(expert=number))
        for number, (beta, numbers) in enumerate(_VALUES.items(), 1)
    ),
    baseline="0",
    notes=("Beta = 0 is expert 1 itself under every reading of Eq. 1 but the literal one.",),
    seeds=3,
)
