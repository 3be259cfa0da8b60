"""What every MoE layer did with every token of one conversation.

L MoE layers, T tokens, E experts, K slots per token.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evomoe.analysis.evaluation_mode import evaluation_mode
from evomoe.analysis.recording import expert_names
from evomoe.model.sparse_model import SparseModel


@dataclass(frozen=True)
class TokenRouting:
    """Where each token went, layer by layer.

    Attributes:
        names: of the experts, the real ones first.
        layers: decoder layer index of each MoE layer.
        probs_LTE: the router's probabilities, float32.
        chosen_LTK: experts that ran, best first; E or more for a slot without one.
        num_real: how many of the names are real experts.
    """

    names: list[str]
    layers: list[int]
    probs_LTE: Tensor
    chosen_LTK: Tensor
    num_real: int


@torch.no_grad()
def routing_of_tokens(model: SparseModel, inputs: Mapping[str, Any], ids_T: Tensor) -> TokenRouting:
    """Runs a question and its answer through the model once more, as one sequence.

    Args:
        inputs: the model's, for the question: one row of S tokens.
        ids_T: the ids of question and answer, of which the first S are the question's.
    """
    S, T = inputs["input_ids"].shape[1], len(ids_T)
    whole = {name: _longer(name, value, S, T) for name, value in inputs.items()}
    whole["input_ids"] = ids_T[None].to(inputs["input_ids"].device)
    with evaluation_mode(model):
        records = model(**whole, output_router_logits=True).records
    layers = sorted(records)
    routings = [records[layer].routing for layer in layers]
    probs_LTE = torch.stack([routing.probs_TE.float().cpu() for routing in routings])
    real = len(next(iter(model.moe_blocks.values())).experts)
    chosen = [routing.index_TK.cpu() for routing in routings]
    return TokenRouting(expert_names(real, probs_LTE.shape[-1]), layers, probs_LTE, torch.stack(chosen), real)


def other_choices(before: TokenRouting, after: TokenRouting) -> Tensor:
    """(L, T) bool: whether other experts ran for a token, in whichever order."""
    return (before.chosen_LTK.sort(-1).values != after.chosen_LTK.sort(-1).values).any(-1)


def _longer(name: str, value: Any, S: int, T: int) -> Any:
    """What there is for each token of the question is for a token of the answer as for the question's last."""
    if not isinstance(value, Tensor) or value.shape[:2] != (1, S) or name.startswith("pixel"):
        return value
    return torch.cat([value, value[:, -1:].expand(1, T - S, *value.shape[2:])], dim=1)
