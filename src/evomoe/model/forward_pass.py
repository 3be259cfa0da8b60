"""What one forward pass knows, and what its MoE layers note.

The note lives in a context variable, so that two passes never mix, and the activation-checkpointing function carries it into
the recomputation (see ``checkpoint_with_pass``).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

import torch

from evomoe.model.modality import Modality
from evomoe.model.routing import LayerRecord


@dataclass
class ForwardPass:
    """What one forward pass knows and notes: the modality of its tokens, and what each MoE layer did.

    Attributes:
        modality: kind of every token.
        records: filled by the MoE layers, by layer index, when ``recording``.
        recording: whether the MoE layers should note what they did.
    """

    modality: Modality
    recording: bool = False
    records: dict[int, LayerRecord] = field(default_factory=dict)


_CURRENT: ContextVar[ForwardPass | None] = ContextVar("evomoe_forward_pass", default=None)
_while_compiling: ForwardPass | None = None
"""``torch.compile`` cannot read context variables; what it compiles does not read this one again."""


def current_pass() -> ForwardPass:
    """The forward pass that is running.

    Raises:
        RuntimeError: an MoE layer was called outside its model's forward.
    """
    forward_pass = _while_compiling if torch.compiler.is_compiling() else _CURRENT.get()
    if forward_pass is None:
        raise RuntimeError(
            "An MoE layer must know which tokens are image and which are text. Call the whole EvoMoE model, or wrap the call in "
            "`with evomoe.model.forward_pass.running(ForwardPass(Modality.of(is_image, is_real))):`."
        )
    return forward_pass


@contextmanager
def running(forward_pass: ForwardPass) -> Iterator[ForwardPass]:
    """Makes ``forward_pass`` the current one for the duration of the block."""
    global _while_compiling
    if torch.compiler.is_compiling():
        _while_compiling = forward_pass
        yield forward_pass
        _while_compiling = None
        return
    token = _CURRENT.set(forward_pass)
    try:
        yield forward_pass
    finally:
        _CURRENT.reset(token)


def checkpoint_with_pass(checkpoint: Callable) -> Callable:
    """Wraps an activation-checkpointing function so that a recomputed layer sees the pass it belongs to.

    The backward pass recomputes a layer long after its forward ended, possibly after another forward and on another thread.
    The recomputation records nothing: its tensors are already in the records of the first run.
    """

    def checkpoint_layer(function: Callable, *args, **kwargs):
        forward_pass, runs = _CURRENT.get(), 0

        def run(*inner, **inner_kwargs):
            nonlocal runs
            runs += 1
            if forward_pass is None:
                return function(*inner, **inner_kwargs)
            with running(forward_pass if runs == 1 else replace(forward_pass, recording=False)):
                return function(*inner, **inner_kwargs)

        return checkpoint(run, *args, **kwargs)

    return checkpoint_layer
