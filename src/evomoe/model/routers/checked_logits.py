"""What a router gives is looked at before anybody chooses by it: a router of your own may err.

T tokens, E experts, virtual ones included.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from evomoe.model.modality import Modality
from evomoe.support.errors import OptionError, foreign, place
from evomoe.support.text import kind_of

if TYPE_CHECKING:
    from evomoe.model.routers.router import Router

_TRIED = ((True, False, False, True, False), (False, False), (True, True))
"""The kinds of the tokens that a router is tried on: both, words alone, a picture alone."""


def check_logits(router: "Router", logits_TE: Tensor, num_tokens: int, num_experts: int) -> None:
    """Raises ValueError unless there is one float32 score for each token and expert."""
    shape = (num_tokens, num_experts)
    if not isinstance(logits_TE, Tensor):
        given = f"that are {kind_of(logits_TE)}"
    elif logits_TE.shape != shape or logits_TE.dtype != torch.float32:
        given = f"{tuple(logits_TE.shape)} {str(logits_TE.dtype).removeprefix('torch.')}"
    else:
        return
    raise ValueError(f"{type(router).__name__} gave logits {given}; {shape} float32 is expected: tokens, experts.")


def make_without_weights(kind: type["Router"], name: str, hidden_size: int, num_experts: int, options: Mapping[str, Any]) -> None:
    """Makes a router on torch's meta device, as it is made when a checkpoint is loaded.

    Raises:
        OptionError: it raises an error.
    """
    try:
        with torch.device("meta"):
            kind(hidden_size, num_experts, **options)
    except OptionError:
        raise
    except Exception as error:  # of code that anybody may have written
        raise OptionError(
            "router",
            f"'{name}' must be made on torch's meta device too, where its constructor can read no values from tensors, and it raised "
            f"{type(error).__name__}: {foreign(error)}{place(error)}",
        ) from error


def try_router(router: "Router", top_k: int, gate: str, name: str = "") -> None:
    """Lets a router choose experts for a few random tokens, in training and after it.

    Args:
        router: what is tried.
        top_k: K.
        gate: a row of ``GATES``.
        name: what errors call the router; by default its class.

    Raises:
        OptionError: it raises an error, or gives what no router may give.
    """
    name = name or type(router).__name__
    for training in (True, False):
        router.train(training)
        for kinds in _TRIED:
            modality = Modality.of(torch.tensor([kinds]), None)
            try:
                with torch.set_grad_enabled(training):
                    routing = router.route(torch.randn(len(kinds), router.hidden_size), modality, top_k, gate)
            except Exception as error:  # of code that anybody may have written
                raised = f"{type(error).__name__}: {foreign(error)}{place(error)}"
                raise OptionError("router", f"'{name}' was tried on {len(kinds)} random tokens and raised {raised}") from error
            if not routing.weight_TK.isfinite().all():
                what = "weights" if routing.logits_TE.isfinite().all() else "logits"
                raise OptionError(
                    "router", f"'{name}' was tried on {len(kinds)} random tokens, and gave {what} that are not finite."
                )
