"""The parts one by one: MoE-tuning, the router, expert evolution, both.

Implements: Table 2 (all rows).
"""

from evomoe.paper.tables import rows
from evomoe.paper.tables.table import Row, Table

_PAPER = "the paper's protocol (Stage III on top)"

TABLE = Table(
    "2",
    "Ablation of the parts",
    (
        Row("dense", "(a) dense", rows.DENSE, (76.3, 61.0, 62.1, 48.2, 86.4, 1286.7, 59.7, 65.4)),
        Row("moe-tuning", "(b) MoE-tuning", rows.MOE_TUNING, (76.2, 61.0, 62.6, 48.0, 86.5, 1288.1, 59.4, 65.5)),
        Row("moe-tuning-dtr", "(c) MoE-tuning + DTR", rows.MOE_TUNING_DTR, (76.2, 61.1, 63.0, 48.6, 86.8, 1310.4, 61.4, 66.0)),
        Row("evolution", "(d) evolution, linear", rows.EVOLUTION_LINEAR, (77.5, 61.2, 62.9, 48.8, 86.8, 1311.4, 61.3, 66.3)),
        Row("evomoe", "EvoMoE", rows.EVOMOE, (76.9, 61.2, 63.3, 49.3, 87.1, 1315.6, 61.6, 66.5)),
        Row("dense-ffn", "dense, FFNs alone (control)", rows.DENSE_FFN),
        Row("evomoe-paper", f"EvoMoE, {_PAPER}", rows.EVOMOE, protocol="paper"),
        Row("evolution-paper", f"evolution, linear, {_PAPER}", rows.EVOLUTION_LINEAR, protocol="paper"),
        Row("dense-longer", "dense, as many steps as these two rows", rows.DENSE, protocol="paper"),
        Row("evomoe-all", "EvoMoE in all layers, top-2, all of the language model in Stage II (ours)", rows.EVOMOE_ALL),
    ),
    average=True,
    baseline="dense",
    comparisons=(
        *((name, "moe-tuning") for name in ("moe-tuning-dtr", "evolution", "evomoe", "evomoe-all", "dense-ffn")),
        ("evomoe", "evolution"),
        *((name, other) for name in ("evomoe-paper", "evolution-paper") for other in ("dense", "dense-longer")),
    ),
    notes=(
        "Equal steps: every row takes 600 on the fine-tuning mix. Under the paper's protocol Stage II takes 600, as the dense row "
        "does. Stage III takes 200 on top, in which the router alone trains; `dense-longer` takes 800.",
        "Table 1 gives MoE-tuning an AVG of 65.3, Tables 2 and 10 one of 65.5.",
    ),
    seeds=3,
)
