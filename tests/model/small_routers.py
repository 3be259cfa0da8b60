"""AnyExperts routers of a few experts, and what they chose for a few tokens."""

import torch

from evomoe.model.modality import Modality
from evomoe.model.routers.anyexperts import AnyExpertsRouter

D, R, T = 16, 8, 60


def tokens(count: int = T, seed: int = 0) -> tuple[torch.Tensor, Modality]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, D, generator=generator), Modality.of((torch.arange(count) % 3 == 0)[None], None)


def a_router(seed: int = 0, **options) -> AnyExpertsRouter:
    """One whose importance and scores differ from token to token."""
    torch.manual_seed(seed)
    router = AnyExpertsRouter(D, options.pop("num_experts", R), **options).eval()
    torch.nn.init.normal_(router.importance.outer.weight, std=1.0)
    torch.nn.init.normal_(router.gate.weight, std=1.0)
    return router


def counts(routing, num_real: int = R) -> tuple[torch.Tensor, torch.Tensor]:
    """Real and virtual slots of each token."""
    every = routing.logits_TE.shape[1]
    return (routing.index_TK < num_real).sum(-1), ((routing.index_TK >= num_real) & (routing.index_TK < every)).sum(-1)
