"""What is added to the language loss: one file per loss, one row per name.

A loss takes what one MoE layer did and returns a scalar. To add one, write its file and its row here; the tests pick it
up from this table.
"""

from evomoe.model.aux_losses.aux_loss import AuxLoss
from evomoe.model.aux_losses.balance import balance
from evomoe.model.aux_losses.budget import budget
from evomoe.model.aux_losses.contrastive import contrastive
from evomoe.model.aux_losses.importance import importance
from evomoe.model.aux_losses.local import local
from evomoe.model.aux_losses.z import z

AUX_LOSSES: dict[str, AuxLoss] = {
    "balance": balance,
    "budget": budget,
    "contrastive": contrastive,
    "importance": importance,
    "local": local,
    "z": z,
}

__all__ = ["AUX_LOSSES", "AuxLoss"]
