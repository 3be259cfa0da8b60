"""The language loss (Eq. 11) from the tokens that have a label: the others, nine in ten, get no logits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from evomoe.data.labels import IGNORED


@contextmanager
def loss_on_labels(model: PreTrainedModel, labels_BS: Tensor, smoothing: float = 0.0) -> Iterator[None]:
    """Within the block, one forward pass of the model computes logits for the tokens alone whose next token has a label.

    The loss and its gradients are those of all logits. ``logits`` of the output are (1, labelled tokens, vocabulary). A model whose
    head is not given a hidden state for each token of ``labels_BS`` computes all logits.

    Args:
        labels_BS: (B, S) int64, as the model is given them; IGNORED where there is none.
        smoothing: label smoothing, the share of the loss that all words have alike.
    """
    targets_BS = F.pad(labels_BS[:, 1:], (0, 1), value=IGNORED)
    is_target_BS, chosen = targets_BS != IGNORED, False

    def choose(head: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal chosen
        hidden_BSD = inputs[0]
        if chosen or hidden_BSD.shape[:2] != labels_BS.shape:
            return inputs
        chosen = True
        return (hidden_BSD[is_target_BS.to(hidden_BSD.device)][None], *inputs[1:])

    def loss(logits: Tensor, labels: Tensor, *_: Any, num_items_in_batch: Tensor | int | None = None, **__: Any) -> Tensor:
        targets = targets_BS[is_target_BS] if chosen else targets_BS
        summed = F.cross_entropy(
            logits.float().flatten(0, -2),
            targets.flatten().to(logits.device),
            reduction="sum",
            ignore_index=IGNORED,
            label_smoothing=smoothing,
        )
        items = is_target_BS.sum() if num_items_in_batch is None else num_items_in_batch
        return summed / (items.to(summed.device) if isinstance(items, Tensor) else items)

    own, head = vars(model), model.get_output_embeddings()
    assert head is not None  # models without one are refused before training
    before, hook = own.get("_loss_function"), head.register_forward_pre_hook(choose)
    model.loss_function = loss
    try:
        yield
    finally:
        hook.remove()
        del own["_loss_function"]
        if before is not None:
            own["_loss_function"] = before
