"""An MoE layer: a router, its experts and, if asked for, a shared expert, where a dense FFN was.

Implements: Eq. 2, Eq. 3, Eq. 4, Table 6 (shared expert).
"""

import torch
from torch import Tensor, nn

from evomoe.model import router_gradient
from evomoe.model.configuration import MoEConfig
from evomoe.model.forward_pass import current_pass
from evomoe.model.modality import Modality
from evomoe.model.one_token import only_expert
from evomoe.model.routers import ROUTERS, Router
from evomoe.model.routing import LayerRecord, Routing
from evomoe.model.stacked_experts import AnyExperts
from evomoe.support import hf


class EvoMoEBlock(nn.Module):
    """The FFN of one MoE layer: a router, its experts and, if asked for, a shared expert.

    Eq. 4: takes and returns hidden states (B, S, D) as the dense FFN does; padding is not routed, gives zero.
    """

    def __init__(
        self, layer: int, moe: MoEConfig, hidden_size: int, experts: AnyExperts, shared_expert: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.layer, self.moe = layer, moe
        self.router: Router = ROUTERS[moe.router](hidden_size, moe.num_experts, **moe.router_options)
        self.router.check(moe.num_experts_per_tok, moe.gate)
        self.experts = experts
        self.shared_expert = shared_expert
        self.shared_expert_gate: nn.Linear | None = None
        if shared_expert is not None:
            self.shared_expert_gate = nn.Linear(hidden_size, 1, bias=False)
            nn.init.zeros_(self.shared_expert_gate.weight)
        for module in (*self.router.modules(), *filter(None, [self.shared_expert_gate])):
            if not any(p.is_meta for p in module.parameters()):
                hf.mark_initialized(module)  # routers draw their own weights; transformers must not draw again

    def forward(self, hidden_BSD: Tensor, /) -> Tensor:
        forward_pass = current_pass()
        modality = forward_pass.modality
        x_TD = modality.real(hidden_BSD)
        alone = None if torch.compiler.is_compiling() else only_expert(x_TD, forward_pass, self.router, self.experts, self.moe)
        if alone is not None:
            return modality.restore(alone(x_TD), hidden_BSD)
        routing = self.route(x_TD, modality)
        if forward_pass.recording:
            forward_pass.records[self.layer] = LayerRecord(routing, modality, x_TD, self.experts)
        return modality.restore(self.mixed(x_TD, routing), hidden_BSD)

    def route(self, x_TD: Tensor, modality: Modality) -> Routing:
        """Where the tokens go."""
        return self.router.route(x_TD, modality, self.moe.num_experts_per_tok, self.moe.gate, self.moe.expert_dropout)

    def mixed(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """The weighted outputs (T, D) of the experts that were chosen, virtual and shared ones included."""
        moe = self.moe
        if routing.input_scale_T1 is not None:
            x_TD = x_TD * routing.input_scale_T1.to(x_TD.dtype)
        learns_from_all = self.training and router_gradient.learns_from_all(moe.router_gradient, self.experts, routing)
        weight_TK = router_gradient.chosen_weights(routing, moe.gate) if learns_from_all else routing.weight_TK
        y_TD = self.run_experts(x_TD, routing.index_TK, weight_TK)
        if (virtual := self.router.virtual_experts) is not None:
            y_TD = virtual.add(y_TD, x_TD, routing.index_TK, weight_TK)
        if learns_from_all:
            y_TD = router_gradient.with_gradient_of_others(y_TD, x_TD, routing, self.experts, virtual, moe.gradient_experts)
        if self.shared_expert is not None and self.shared_expert_gate is not None:
            share_T1 = self.shared_expert_gate(x_TD).float().sigmoid().to(y_TD.dtype)
            y_TD = torch.lerp(y_TD, self.shared_expert(x_TD), share_T1)
        return y_TD

    def run_experts(self, x_TD: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
        """The weighted outputs (T, D) of the real experts that were chosen."""
        return self.experts(x_TD, index_TK, weight_TK)
