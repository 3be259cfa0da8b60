"""How many real experts each patch of a picture and each word of a question gets.

T tokens, K slots per token, H x W patches.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evomoe.analysis.token_places import token_grids
from evomoe.model.sparse_model import SparseModel


@dataclass(frozen=True)
class QuestionExperts:
    """Real experts per token, mean over the MoE layers, of one record.

    Attributes:
        patches_HW: of the picture's patches.
        words: of each piece of text, in order.
    """

    patches_HW: Tensor
    words: list[tuple[str, float]]


@torch.no_grad()
def real_experts_by_token(model: SparseModel, batch: Mapping[str, Tensor]) -> Tensor:
    """How many real experts each real token of a batch has, mean over the MoE layers: (T,) float32, in reading order."""
    records = model(**batch, output_router_logits=True).records.values()
    E = model.config.moe.num_experts
    return torch.stack([(record.routing.index_TK < E).sum(-1).float() for record in records]).mean(0).cpu()


def split_by_place(
    experts_T: Tensor,
    ids_T: Tensor,
    image_tokens: Sequence[int],
    decode: Callable[[list[int]], str],
    inputs: Mapping[str, Any],
) -> QuestionExperts:
    """Puts the image tokens of one record back into their places, and names the others.

    Args:
        ids_T: its token ids.
        decode: token ids -> text.
        inputs: the model's, for this record, which has one picture.

    Raises:
        NoPlacesError: it is not known which of the image tokens is where.
    """
    is_image_T = torch.isin(ids_T, torch.tensor(list(image_tokens)))
    patches_V = experts_T[is_image_T]
    ((H, W),) = token_grids(len(patches_V), 1, inputs)
    words = [
        (decode([token]), value)
        for token, value in zip(ids_T[~is_image_T].tolist(), experts_T[~is_image_T].tolist(), strict=True)
    ]
    return QuestionExperts(patches_V.view(H, W), words)
