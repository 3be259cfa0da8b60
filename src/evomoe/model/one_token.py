"""A step of decoding on a CPU: a token's only expert is found by its scores, without what nobody reads then.

Under gates that divide by the chosen probabilities the weight of an only expert is 1, whatever its probability.
"""

from functools import cache

import torch
from torch import Tensor, nn

from evomoe.model.configuration import MoEConfig
from evomoe.model.experts import Experts
from evomoe.model.forward_pass import ForwardPass
from evomoe.model.routers.router import Router

_STEPS = ("route", "score", "probabilities", "choose", "weigh", "virtual_experts")
_WEIGHT_OF_ONE_IS_1 = ("normalised", "straight_through")


@cache
def _chooses_the_best(router: type[Router]) -> bool:
    """Whether a kind of router leaves every step between scores and weights as it is."""
    return all(getattr(router, step) is getattr(Router, step) for step in _STEPS)


def only_expert(x_TD: Tensor, forward_pass: ForwardPass, router: Router, experts: nn.Module, moe: MoEConfig) -> nn.Module | None:
    """The expert that gives a layer's output in a pass of one token, with the weight 1; None if there is more to it."""
    if len(x_TD) != 1 or torch.is_grad_enabled() or forward_pass.recording or x_TD.device.type != "cpu":
        return None
    if moe.num_experts_per_tok > 1 or moe.gate not in _WEIGHT_OF_ONE_IS_1 or moe.shared_expert or router.training:
        return None
    if not isinstance(experts, Experts) or not _chooses_the_best(type(router)) or torch.is_autocast_enabled("cpu"):
        return None
    return experts[int(router(x_TD.float(), forward_pass.modality).argmax())]
