"""Any router plus a linear one shared by the modalities, weighted against each other.

Implements: Table 4 (c), Table 4 (d), Figure 4 (c), Figure 4 (d).
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from evomoe.model.modality import Modality
from evomoe.model.routers.dtr import DynamicTokenAwareRouter
from evomoe.model.routers.linear import LinearRouter
from evomoe.model.routers.modality import ModalityRouter
from evomoe.model.routers.router import Router


class SharedRouter(Router):
    """logits = (1 - s) * own logits + s * shared logits, with a learned s = sigmoid(mix) that starts at 1/2.

    The paper says "weighted shared router" and gives no formula; the weighting is this project's reading.

    Attributes:
        Own: class of the router that the shared one is mixed with. Its options are those of the mixture.
    """

    Own: ClassVar[type[Router]]

    def __init_subclass__(cls) -> None:
        cls.Options = cls.Own.Options

    def __init__(self, hidden_size: int, num_experts: int, **options: Any) -> None:
        super().__init__(hidden_size, num_experts, **options)
        self.own, self.shared = self.Own(hidden_size, num_experts, **options), LinearRouter(hidden_size, num_experts)
        self.mix = nn.Parameter(torch.zeros(()))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.mix)

    def forward(self, x_TD: Tensor, modality: Modality) -> Tensor:
        share = self.mix.float().sigmoid()
        return (1 - share) * self.own(x_TD, modality) + share * self.shared(x_TD, modality)


class SharedModalityRouter(SharedRouter):
    """ModalityRouter mixed with a linear router that both modalities share, by a learned weight."""

    Own = ModalityRouter


class SharedDynamicTokenAwareRouter(SharedRouter):
    """DynamicTokenAwareRouter mixed with a linear router that both modalities share, by a learned weight."""

    Own = DynamicTokenAwareRouter
