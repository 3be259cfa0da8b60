"""Training ends before a step whose loss or gradients are not finite, and says which records it was about."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from evomoe.support.text import counted

NAMED = 5
"""How many of a step's records are named."""


class DivergenceCallback(TrainerCallback):
    """Looks at loss and gradients before every optimiser step. It waits for the device once.

    Args:
        records_of_step: the names of the records of a step, counted from 0.
    """

    def __init__(self, records_of_step: Callable[[int], list[str]]) -> None:
        self.records_of_step = records_of_step
        self.losses: list[Tensor] = []

    def note(self, loss: Tensor) -> None:
        """Told of each micro-batch's loss."""
        self.losses.append(loss.detach())

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        losses, self.losses = self.losses, []
        assert isinstance(model, nn.Module)
        finite = [torch.stack(losses).isfinite().all()] if losses else []
        if not args.fp16:  # whose scaler leaves out a step with infinite gradients, and goes on
            gradients = [getattr(p.grad, "_local_tensor", p.grad) for p in model.parameters() if p.grad is not None]
            # DeepSpeed has used and dropped them by now: there the loss of the next step tells.
            finite += [norm.isfinite() for norm in torch._foreach_norm(gradients)] if gradients else []
        if finite and not bool(torch.stack([one.to(finite[0].device) for one in finite]).all()):
            what = "loss is" if losses and not bool(finite[0]) else "gradients are"
            raise ValueError(_sentence(what, state.global_step, self.records_of_step(state.global_step), args.output_dir))


def _sentence(what: str, step: int, records: list[str], folder: str) -> str:
    checkpoint = get_last_checkpoint(folder) if step else None
    named = ", ".join(records[:NAMED]) + (f" and {counted(len(records) - NAMED, 'more record')}" if len(records) > NAMED else "")
    return (
        f"Training stopped before step {step + 1}: the {what} not finite. "
        + (f"The step's records: {named}. " if records else "")
        + (f"The last good checkpoint: {checkpoint}. " if checkpoint else "There is no checkpoint yet. ")
        + "Try a lower `learning_rate`, or look at these records."
    )
