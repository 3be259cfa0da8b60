"""What becomes of the routing when only the picture is another.

Implements: Section 1 (routing under swapped pictures).
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from evomoe.analysis.evaluation_mode import evaluation_mode
from evomoe.analysis.rigidity import changed_tokens
from evomoe.data.conversations import TOKEN_KEYS
from evomoe.model.sparse_model import SparseModel

Item = dict[str, Tensor]


def swap_pictures(items: Sequence[Item], image_tokens: Sequence[int]) -> list[tuple[Item, Item]]:
    """The records whose picture can be swapped: each as it is, and with another one's picture.

    Records with pictures of one shape and as many image tokens hand their pictures on in a ring. Those without a picture, or
    whose partner has the same one, are left out.

    Args:
        items: records as ``ConversationDataset`` makes them.
        image_tokens: ids of the image tokens.
    """
    rings: dict[tuple, list[tuple[Item, Item]]] = {}
    for item in items:
        vision = {name: value for name, value in item.items() if name not in TOKEN_KEYS}
        count = torch.isin(item["input_ids"], torch.tensor(image_tokens)).sum().item()
        shapes = sorted((name, tuple(value.shape)) for name, value in vision.items())
        rings.setdefault((count, *shapes), []).append((item, vision))
    pairs = []
    for ring in rings.values():
        for (item, own), (_, other) in zip(ring, [*ring[1:], ring[0]], strict=True):
            if any(not torch.equal(own[name], other[name]) for name in own):
                pairs.append((item, item | other))
    return pairs


@torch.inference_mode()
def changed_by_pictures(
    model: SparseModel, pairs: Iterable[tuple[dict[str, Tensor], dict[str, Tensor]]]
) -> dict[str, dict[int, float]]:
    """The share of the tokens that go to other experts when only the picture is swapped, by modality and layer.

    Args:
        model: an EvoMoE model; it runs in evaluation mode.
        pairs: two batches without labels that differ in their pictures alone.

    Returns:
        {"text": {layer: share}, "image": {layer: share}}; nothing without a pair.
    """
    changed: dict[str, dict[int, Tensor]] = {"text": {}, "image": {}}
    with evaluation_mode(model):
        for pair in pairs:
            before, after = (model(**batch, output_router_logits=True, logits_to_keep=1)["records"] for batch in pair)
            for layer, record in before.items():
                E = record.routing.logits_TE.shape[-1]
                changed_T = changed_tokens(record.routing.index_TK, after[layer].routing.index_TK, E)
                for name, tokens in zip(("image", "text"), record.modality.tokens, strict=True):
                    seen = torch.tensor([changed_T[tokens].sum().item(), len(tokens)])
                    changed[name][layer] = changed[name].get(layer, 0) + seen
    return {
        name: {layer: (count / seen).item() for layer, (count, seen) in by_layer.items()} for name, by_layer in changed.items()
    }
