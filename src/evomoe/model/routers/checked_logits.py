"""What a router gives is looked at before anybody chooses by it: a router of your own may err.

T tokens, E experts, virtual ones included.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evomoe.model.modality import Modality
from evomoe.support.errors import OptionError, foreign

if TYPE_CHECKING:
    from evomoe.model.routers.router import Router

_TRIED = ((True, False, False, True, False), (False, False), (True, True))
"""The kinds of the tokens that a router is tried on: both, words alone, a picture alone."""


def check_logits(router: "Router", logits_TE: Tensor, num_tokens: int, num_experts: int) -> None:
    """Raises ValueError unless there is one float32 score for each token and expert."""
    shape = (num_tokens, num_experts)
    if logits_TE.shape != shape or logits_TE.dtype != torch.float32:
        given = f"{tuple(logits_TE.shape)} {str(logits_TE.dtype).removeprefix('torch.')}"
        raise ValueError(f"{type(router).__name__} gave logits {given}; {shape} float32 is expected: tokens, experts.")


def try_router(router: "Router", top_k: int, gate: str) -> None:
    """Lets a router choose experts for a few random tokens, in training and after it.

    Raises:
        OptionError: it raises an error, or gives what no router may give.
    """
    for training in (True, False):
        router.train(training)
        for kinds in _TRIED:
            modality = Modality.of(torch.tensor([kinds]), None)
            try:
                with torch.set_grad_enabled(training):
                    routing = router.route(torch.randn(len(kinds), router.hidden_size), modality, top_k, gate)
            except Exception as error:  # of code that anybody may have written
                raise OptionError(
                    "router", f"it was tried on {len(kinds)} random tokens and raised {type(error).__name__}: {foreign(error)}"
                ) from error
            if not routing.weight_TK.isfinite().all():
                raise OptionError("router", f"it was tried on {len(kinds)} random tokens, and gave weights that are not finite.")
