"""Passes of a model for measuring: in evaluation mode, and the language loss without auxiliary losses."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel


@contextmanager
def evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    """Puts the model into evaluation mode for the duration of the block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def token_losses(logits_BSV: Tensor, labels_BS: Tensor) -> Tensor:
    """The language loss (Eq. 11) of every target token, (N,), in nats; labels of -100 are no targets."""
    targets_BS = labels_BS[:, 1:]
    is_target_BS = targets_BS != -100
    return torch.nn.functional.cross_entropy(logits_BSV[:, :-1][is_target_BS].float(), targets_BS[is_target_BS], reduction="none")


@torch.inference_mode()
def language_loss(model: PreTrainedModel, batches: Iterable[dict[str, Tensor]]) -> float:
    """The mean language loss of a model in evaluation mode over all target tokens of some labelled batches."""
    total, count = 0.0, 0
    with evaluation_mode(model):
        for batch in batches:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            loss_N = token_losses(model(**inputs).logits, batch["labels"])
            total, count = total + loss_N.sum().item(), count + len(loss_N)
    if not count:
        raise ValueError("The language loss needs at least one batch with labels.")
    return total / count
