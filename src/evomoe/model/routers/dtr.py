"""The Dynamic Token-aware Router: a hypernetwork per modality writes a small network for every token.

Implements: Eq. 5, Eq. 6, Eq. 7, Eq. 8, Figure 3, Table 4 (DTR).

H hypernetwork width, R router rank. The paper's formulas, per token z of modality tau, here divided by its
root mean square first:

    a = W1 z + b1                      (H,)
    Theta = W2 a + b2                  two matrices: Theta_down (2R, D), Theta_up (D, R)
    logits = phi(Theta_up SwiGLU(Theta_down z))

Theta is 3RD numbers a token and is not formed for many. W2 is linear, so with a' = [a; 1] (the 1 carries b2):

    Theta_down z = sum_h a'_h (W2down_h z)            one matrix product (T, D) x (D, (H+1) 2R), then a contraction with a'
                                                      (one token alone: Theta_down itself, as printed, which reads W2 faster)
    phi(Theta_up s) = sum_h a'_h (phi W2up_h s)       phi W2up is ((H+1) E, R): small, computed once a pass or answer

Why the division: the logits are of fifth degree in z. The norm before the FFN lets z be a third or ten times of unit size,
depending on the model and the layer; to the fifth power, that is a router which is blind, or one whose softmax is saturated
before its first step (seen on easy-VQA: logits in the thousands, and no learning). The paper does not say.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evomoe.model.kept import kept
from evomoe.model.modality import Modality
from evomoe.model.routers.float32 import Float32Linear, Float32Weight, inverse_rms
from evomoe.model.routers.router import Router
from evomoe.recipe.router_options import DTROptions


class MixedMaps(Float32Weight):
    """sum_h a_h (W_h z): H+1 maps (P, D), stored one below the other, ((H+1) P, D), and mixed anew for every token."""

    def forward(self, a_NH: Tensor, z_TD: Tensor, rows_N: Tensor | None = None) -> Tensor:
        """(N, P): for all tokens, or for those whose indices ``rows_N`` holds; ``a_NH`` has H + 1 entries a token."""
        if rows_N is None and len(z_TD) == 1:
            map_PD = (a_NH @ self.float_PI().view(a_NH.shape[1], -1)).view(-1, z_TD.shape[1])
            return F.linear(z_TD.float(), map_PD)
        maps_NHP = self.product(z_TD, rows_N).view(*a_NH.shape, len(self.weight) // a_NH.shape[1])
        return torch.bmm(a_NH.unsqueeze(1), maps_NHP).squeeze(1)


class HyperNetwork(nn.Module):
    """H^tau: the parameters of Eq. 5 and 6 for one modality.

    ``down.weight`` is ((H+1) * 2R, D) and ``up.weight`` is (D, (H+1) * R): the blocks 0..H-1 are W2, block H is b2.
    """

    def __init__(self, hidden_size: int, hypernet_width: int, rank: int) -> None:
        super().__init__()
        self.embed = Float32Linear(hidden_size, hypernet_width)
        self.down = MixedMaps(hidden_size, (hypernet_width + 1) * 2 * rank, bias=False)
        self.up = Float32Linear(hidden_size, (hypernet_width + 1) * rank, bias=False, transposed=True)
        self.width, self.rank = hypernet_width, rank
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Scales chosen so that a is about 1 and each of Eq. 7's intermediate values is about 1."""
        D, H, R = self.embed.weight.shape[1], self.width, self.rank
        self.embed.draw(std=D**-0.5)
        self.down.draw(std=(D * (H + 1)) ** -0.5)
        self.up.draw(std=(R * (H + 1)) ** -0.5)

    def forward(self, z_TD: Tensor, inverse_rms_T1: Tensor, phi_ED: Tensor, rows_N: Tensor | None = None) -> Tensor:
        """phi(e) without phi's bias, for all tokens (T, E) or for those that ``rows_N`` names (N, E).

        Each product with z is divided by z's root mean square afterwards, so that no normalised copy of z is kept.
        """
        inverse_rms_N1 = inverse_rms_T1 if rows_N is None else inverse_rms_T1[rows_N]
        if rows_N is not None and not torch.is_grad_enabled():  # gathered once for both products; no backward pass keeps it
            z_TD, rows_N = z_TD[rows_N], None
        a_NH = F.pad(self.embed(z_TD, rows_N, inverse_rms_N1), (0, 1), value=1.0)  # H + 1 entries
        down_NP = self.down(a_NH, z_TD, rows_N) * inverse_rms_N1
        gate_NR, value_NR = down_NP.chunk(2, dim=-1)
        s_NR = F.silu(gate_NR) * value_NR
        folded_RP = kept(self, lambda: self._folded(phi_ED))
        up_NHE = (s_NR @ folded_RP).view(-1, self.width + 1, len(phi_ED))
        return torch.bmm(a_NH.unsqueeze(1), up_NHE).squeeze(1)

    def _folded(self, phi_ED: Tensor) -> Tensor:
        """phi W2up, (R, (H+1) E): the same for all tokens."""
        return self.up(phi_ED).view(-1, self.width + 1, self.rank).permute(2, 1, 0).reshape(self.rank, -1)


class FinalRouter(nn.Module):
    """phi of Eq. 8. Both hypernetworks fold it into their own maps, so it is not applied but hands out what it holds."""

    def __init__(self, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        self.bias = nn.Parameter(torch.empty(num_experts))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Weight (E, D) and bias (E,), in float32."""
        return self.weight.float(), self.bias.float()


class DynamicTokenAwareRouter(Router[DTROptions]):
    """Two hypernetworks, one for image and one for text tokens, and a final router phi that they share."""

    Options = DTROptions

    def __init__(self, hidden_size: int, num_experts: int, **options: Any) -> None:
        super().__init__(hidden_size, num_experts, **options)
        H, R = self.options.hypernet_width, self.options.rank
        self.image = HyperNetwork(hidden_size, H, R)
        self.text = HyperNetwork(hidden_size, H, R)
        self.phi = FinalRouter(hidden_size, num_experts)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.phi.weight, std=self.hidden_size**-0.5)
        nn.init.zeros_(self.phi.bias)

    def forward(self, x_TD: Tensor, modality: Modality) -> Tensor:
        phi_ED, bias_E = self.phi()
        inverse_rms_T1 = inverse_rms(x_TD)
        image, text = (partial(network, x_TD, inverse_rms_T1, phi_ED) for network in (self.image, self.text))
        logits_TE = modality.scored_by(image, text, both=self.training)
        logits_TE, cap = logits_TE + bias_E, self.options.cap
        return cap * torch.tanh(logits_TE / cap) if cap else logits_TE
