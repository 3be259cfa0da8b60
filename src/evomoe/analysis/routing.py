"""The numbers of a recording, per layer and averaged: where tokens went, and how much experts and modalities differ.

L MoE layers, M = 2 modalities (text, image), E experts, T tokens, D hidden.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from evomoe.analysis import balance, rigidity
from evomoe.analysis.density import overlap
from evomoe.analysis.evaluation_mode import evaluation_mode
from evomoe.analysis.recording import MODALITIES, RoutingRecording, expert_names, record_routing
from evomoe.analysis.uniformity import mean_of_pairs, output_cka, output_cosine
from evomoe.model.sparse_model import SparseModel

PROBE_TOKENS = 2048
"""Tokens on which the experts' outputs are compared, and the most of each modality whose logits are kept."""


@dataclass(frozen=True)
class RoutingStatistics:
    """What the routers and experts of a sparse model did on a probe set; padding excluded.

    Attributes:
        layers: decoder layer index of each MoE layer.
        counts_LME: how many of the modality's slots each expert got.
        tokens_M: how many tokens of each modality there were.
        logits: per layer, a sample of router logits by modality, {"text": (n, E), "image": (n, E)}.
        cka_LEE: linear CKA of the experts' outputs on the same tokens.
        cosine_LEE: cosine of the same outputs, token by token.
        added: further numbers per layer by their names in ``evomoe.analysis.meanings``, which need more than a recording.
    """

    layers: list[int]
    counts_LME: Tensor
    tokens_M: Tensor
    logits: list[dict[str, Tensor]]
    cka_LEE: Tensor
    cosine_LEE: Tensor
    added: dict[str, list[float]] = field(default_factory=dict)

    @property
    def load_LME(self) -> Tensor:
        """Share of the modality's slots that each expert got."""
        return balance.load(self.counts_LME)

    @property
    def real_load_LE(self) -> Tensor:
        """Share of the slots of all tokens and real experts that each real expert got."""
        return balance.load(self.counts_LME.sum(1)[:, : self.real_experts])

    @property
    def experts_per_token_LM(self) -> Tensor:
        """Real experts of a token of each modality, on average; nan of a modality that was not there."""
        return self.counts_LME[..., : self.real_experts].sum(-1).double() / self.tokens_M

    @cached_property
    def overlap_LE(self) -> Tensor:
        """Overlap of the densities of each expert's logits for image and for text tokens."""
        rows = [
            [overlap(*(of_layer[name][:, e] for name in MODALITIES)) for e in range(self.experts)] for of_layer in self.logits
        ]
        return torch.tensor(rows, dtype=torch.float64)

    @property
    def experts(self) -> int:
        """E, real and virtual."""
        return self.counts_LME.shape[-1]

    @property
    def real_experts(self) -> int:
        """How many of them are real."""
        return self.cka_LEE.shape[-1]

    @property
    def names(self) -> list[str]:
        """Of the experts, for reports."""
        return expert_names(self.real_experts, self.experts)

    def expert_load(self) -> dict[str, list[float]]:
        """Load of each expert by modality, averaged over the layers."""
        return {name: self.load_LME[:, m].mean(0).tolist() for m, name in enumerate(MODALITIES)}

    def metrics(self) -> dict[str, list[float]]:
        """All numbers per layer, by their names in ``evomoe.analysis.meanings``; nan where one is not defined."""
        real_LE, per_token_LM = self.real_load_LE, self.experts_per_token_LM
        return {
            "cka": [mean_of_pairs(cka_EE) for cka_EE in self.cka_LEE],
            "output_cosine": [mean_of_pairs(cosine_EE) for cosine_EE in self.cosine_LEE],
            "logit_overlap": self.overlap_LE.mean(-1).tolist(),
            "nmi": [rigidity.normalised_mutual_information(counts_ME) for counts_ME in self.counts_LME],
            "jensen_shannon": [rigidity.jensen_shannon(*load_ME) for load_ME in self.load_LME],
            "effective_experts": balance.effective_experts(real_LE).tolist(),
            "load_variation": balance.coefficient_of_variation(real_LE).tolist(),
            "dead_experts": balance.dead_experts(real_LE).tolist(),
            **{f"experts_per_{name}_token": per_token_LM[:, m].tolist() for m, name in enumerate(MODALITIES)},
            **self.added,
        }

    def means(self) -> dict[str, float]:
        """``metrics`` averaged over the layers where they are defined."""
        return {name: torch.tensor(values).double().nanmean().item() for name, values in self.metrics().items()}

    def with_added(self, **numbers: dict[int, float]) -> "RoutingStatistics":
        """The same with further numbers, each by layer."""
        listed = {name: [by_layer.get(layer, math.nan) for layer in self.layers] for name, by_layer in numbers.items()}
        return replace(self, added=self.added | listed)


@torch.inference_mode()
def routing_statistics(
    model: SparseModel, batches: Iterable[dict[str, Tensor]], max_tokens: int = PROBE_TOKENS, seed: int = 0
) -> RoutingStatistics:
    """Runs a sparse model on model inputs in evaluation mode, and returns the numbers of what it did.

    Args:
        model: an EvoMoE model.
        batches: model inputs.
        max_tokens: how many tokens the experts' outputs are compared on, and the most logits kept of each modality.
        seed: draws that sample.

    Raises:
        ValueError: there is no batch, or the model is not sparse.
    """
    with evaluation_mode(model), record_routing(model, max_tokens, seed) as recording:
        for batch in batches:
            model(**batch, logits_to_keep=1)
    return statistics_of(model, recording)


@torch.inference_mode()
def statistics_of(model: SparseModel, recording: RoutingRecording) -> RoutingStatistics:
    """The numbers of what was recorded, with the outputs of the model's experts on the sampled tokens.

    Raises:
        ValueError: nothing was recorded.
    """
    if not recording.counts:
        raise ValueError("routing_statistics needs at least one batch: no forward pass was recorded.")
    layers = list(recording.counts)
    cka, cosine = [], []
    for layer in layers:
        outputs = _outputs(model, layer, recording)
        cka.append(output_cka(outputs))
        cosine.append(output_cosine(outputs))
    return RoutingStatistics(
        layers=layers,
        counts_LME=torch.stack([recording.counts[layer] for layer in layers]),
        tokens_M=recording.tokens_M.clone(),
        logits=[{name: sample.logits[layer].float() for name, sample in recording.samples.items()} for layer in layers],
        cka_LEE=torch.stack(cka),
        cosine_LEE=torch.stack(cosine),
    )


def _outputs(model: SparseModel, layer: int, recording: RoutingRecording) -> list[Tensor]:
    """What each expert makes of the same sampled tokens, (N, D); the modalities have the shares that they have in the data."""
    seen = recording.counts[layer].sum(-1)
    share_M = (seen / seen.sum()).tolist()
    parts = []
    for sample, share in zip(recording.samples.values(), share_M, strict=True):
        x_ND = sample.inputs[layer]
        parts.append(x_ND[: max(1, round(sample.size * share))])
    x_ND = torch.cat(parts)
    experts = model.moe_blocks[layer].experts
    return [experts[n](x_ND.to(next(iter(experts.weights(n).values())).device)) for n in range(len(experts))]
