"""Forms of a pass in which no shape depends on the data, for ``torch.compile`` and for servers: more arithmetic, no look at numbers.

T tokens, D hidden, E experts, K experts per token.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from evomoe.model.modality import Modality, OfRows

MOST_EXPERTS, MOST_TOKENS = 16, 64
"""Up to so many, running every expert is worth that a step of decoding is compiled whole."""


def compiles_an_answer() -> bool:
    """Whether ``torch.compile`` reads the code, for a pass that nobody trains on."""
    return torch.compiler.is_compiling() and not torch.is_grad_enabled()


class FixedShapes(Modality):
    """Each network scores every token, and each token takes the scores of its own. Padding counts as text, and nobody heeds it."""

    def scored_by(self, image: OfRows, text: OfRows, both: bool) -> Tensor:
        return torch.where(self.is_image_T.unsqueeze(-1), image(None), text(None))

    @classmethod
    def of(cls, is_image_BS: Tensor, is_real_BS: Tensor | None) -> "FixedShapes":
        return cls(is_image_BS.reshape(-1), None, (is_image_BS.shape[0], is_image_BS.shape[1]))


def run_every_expert(experts: Iterable[nn.Module], x_TD: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
    """As ``Experts.forward``: every expert runs, with the weight 0 where it was not chosen."""
    outputs = [expert(x_TD) * (weight_TK * (index_TK == number)).sum(-1, keepdim=True) for number, expert in enumerate(experts)]
    return torch.stack(outputs).sum(0)
