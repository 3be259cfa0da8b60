"""Ways to make experts diverse, against evolution.

Implements: Table 5 (all rows).
"""

from dataclasses import replace

from evomoe.paper.tables import rows
from evomoe.paper.tables.table import FOUR, FROM_STAGE1, WARM_UP, Row, Table

_BALANCE = rows.MOE_TUNING.moe.aux_losses
_V_EVO = FROM_STAGE1.but(
    stage2=replace(FROM_STAGE1.stage2, data=WARM_UP, train="text+projector"),
    stage3=rows.MOE_TUNING.stage3,
    moe=rows.MOE_TUNING.moe,
)

TABLE = Table(
    "5",
    "Ways to make experts diverse",
    (
        Row("moe-tuning", "(a) MoE-tuning", rows.MOE_TUNING, (61.0, 62.6, 48.0, 86.5)),
        Row(
            "noise",
            "(b) noise at the start",
            rows.MOE_TUNING.but(expert_init="noise", init_options={"std": 1e-3}),
            (60.8, 63.1, 47.2, 86.1),
        ),
        Row("v-evo", "(c) evolution in Stage I", _V_EVO, (61.3, 63.0, 48.0, 86.7)),
        Row("dropout", "(d) expert dropout", rows.MOE_TUNING.but(expert_dropout=0.1), (60.6, 62.3, 47.4, 86.2)),
        Row(
            "contrastive",
            "(e) contrastive loss",
            rows.MOE_TUNING.but(aux_losses=_BALANCE | {"contrastive": 0.01}),
            (61.5, 62.6, 47.5, 86.3),
        ),
        Row("local", "(f) local loss", rows.MOE_TUNING.but(aux_losses=_BALANCE | {"local": 0.01}), (60.9, 62.2, 48.2, 85.9)),
        Row("evomoe", "evolution", rows.EVOMOE, (61.2, 63.3, 49.3, 87.1)),
    ),
    columns=FOUR,
    baseline="moe-tuning",
    notes=(
        "The paper does not say how large the noise, the dropout and the weights of the losses in (b) to (f) are: 1e-3, 0.1, 0.01.",
        "(c): experts evolve while all of the language model trains on the warm-up mix, as in a longer Stage I (in small 400 steps "
        "more). Then router and experts train on the fine-tuning mix for as long as in (a).",
        "The paper's (b) and (d) agree with no row of its Table 14.",
    ),
)
