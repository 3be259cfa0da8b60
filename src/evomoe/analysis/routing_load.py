"""Where the tokens of a few passes went, for people: a table by modality, and one sentence."""

from dataclasses import dataclass

import torch
from torch import Tensor

from evomoe.analysis import balance
from evomoe.analysis.recording import MODALITIES, RoutingRecording, expert_names
from evomoe.model.sparse_model import SparseModel
from evomoe.support.text import counted, markdown_table


@dataclass(frozen=True)
class RoutingLoad:
    """How many slots each expert got. L MoE layers, M = 2 modalities (text, image), E experts.

    Attributes:
        names: of the experts, the real ones first.
        layers: decoder layer index of each MoE layer.
        counts: (L, M, E) int64.
        tokens_M: (M,) int64, how many tokens of each modality there were.
    """

    names: list[str]
    layers: list[int]
    counts: Tensor
    tokens_M: Tensor

    @classmethod
    def of(cls, model: SparseModel, recording: RoutingRecording) -> "RoutingLoad":
        """What was recorded of a model."""
        layers = sorted(recording.counts)
        counts_LME = torch.stack([recording.counts[layer] for layer in layers])
        real = len(next(iter(model.moe_blocks.values())).experts)
        return cls(expert_names(real, counts_LME.shape[-1]), layers, counts_LME, recording.tokens_M)

    def table(self) -> str:
        """In Markdown: the share of each modality's tokens that each expert had, averaged over the layers."""
        load_ME = balance.load(self.counts).mean(0)
        rows = [
            [f"{counted(int(self.tokens_M[m]), f'{name} token')}", *(f"{share:.0%}" for share in load_ME[m].tolist())]
            for m, name in enumerate(MODALITIES)
            if self.tokens_M[m]
        ]
        return markdown_table(["mean over layers", *self.names], rows)

    def sentence(self) -> str:
        """Which experts had nothing to do, and where."""
        asleep_E = (self.counts.sum(1) == 0).sum(0).tolist()
        found = [(name, count) for name, count in zip(self.names, asleep_E, strict=True) if count]
        if not found:
            return "Every expert had a token in every layer."
        total = counted(len(self.layers), "layer")
        return "; ".join(f"{name} slept in {count} of {total}" for name, count in found).capitalize() + "."
