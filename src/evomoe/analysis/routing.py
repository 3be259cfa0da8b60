"""Where tokens went and how much the experts differ, measured on questions the model is given.

Implements: Figure 1 (b), Figure 5 (load), Section 1 (uniformity of outputs), Section 1 (rigidity).

L MoE layers, M = 2 modalities (text, image), E experts, T tokens, D hidden.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

from evomoe.modeling import EvoMoEBlock

MODALITIES = ("text", "image")


@dataclass(frozen=True)
class RoutingStatistics:
    """What the routers and experts of a sparse model did on a probe set; padding excluded.

    Attributes:
        layers: decoder layer index of each MoE layer.
        load_LME: share of the modality's routed slots that each expert got, per layer.
        total_load_LE: the same for all tokens together.
        logits: per layer, a sample of router logits by modality, {"text": (n, E), "image": (n, E)}.
        cka_LEE: linear CKA of the experts' outputs on the same tokens, per layer.
    """

    layers: list[int]
    load_LME: Tensor
    total_load_LE: Tensor
    logits: list[dict[str, Tensor]]
    cka_LEE: Tensor

    def effective_experts(self) -> list[float]:
        """exp(entropy of the load) per layer: 1 when one expert does all, E when all do the same."""
        return torch.special.entr(self.total_load_LE).sum(-1).exp().tolist()

    def expert_load(self) -> dict[str, list[float]]:
        """Load of each expert by modality, averaged over the layers."""
        return {name: self.load_LME[:, m].mean(0).tolist() for m, name in enumerate(MODALITIES)}

    def layer_cka(self) -> list[float]:
        """Mean CKA of two different experts, per layer: 1 when all compute the same; nan where no two experts' outputs vary."""
        off_diagonal = ~torch.eye(self.cka_LEE.shape[-1], dtype=torch.bool)
        return self.cka_LEE[:, off_diagonal].nanmean(-1).tolist()

    def mean_cka(self) -> float:
        """The mean of ``layer_cka``."""
        return torch.tensor(self.layer_cka()).nanmean().item()


@torch.inference_mode()
def routing_statistics(
    model: PreTrainedModel, batches: Iterable[dict[str, Tensor]], max_tokens: int = 2048, seed: int = 0
) -> RoutingStatistics:
    """Runs a sparse model on the batches and gathers its statistics.

    Args:
        batches: model inputs.
        max_tokens: size of the token sample for logits and CKA, per layer (and modality, for the logits).
        seed: draws that sample.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    counts: dict[int, Tensor] = {}
    samples: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}
    was_training = model.training
    blocks = cast(dict[int, EvoMoEBlock], model.moe_blocks)
    model.eval()
    for batch in batches:
        out = model(**batch, output_router_logits=True, logits_to_keep=1)
        for layer, record in out["records"].items():
            E, index_TK = record.routing.logits_TE.shape[-1], record.routing.index_TK
            kind_TK = record.modality.is_image_T.long().unsqueeze(-1).expand_as(index_TK)
            cell = (kind_TK * E + index_TK)[index_TK < E]
            counts[layer] = counts.get(layer, 0) + torch.bincount(cell, minlength=2 * E).view(2, E)
            kept = torch.randperm(record.x_TD.shape[0], generator=generator)[:max_tokens].to(record.x_TD.device)
            samples.setdefault(layer, []).append(
                (record.x_TD[kept], record.routing.logits_TE[kept], record.modality.is_image_T[kept])
            )
    model.train(was_training)
    if not counts:
        raise ValueError("routing_statistics needs at least one batch.")
    logits, cka = [], []
    for layer, parts in samples.items():
        x_TD, logits_TE, is_image_T = (torch.cat(column) for column in zip(*parts, strict=True))
        by_modality = {"text": logits_TE[~is_image_T], "image": logits_TE[is_image_T]}
        logits.append({name: _sample(values, max_tokens, generator).float().cpu() for name, values in by_modality.items()})
        probe_TD = _sample(x_TD, max_tokens, generator)
        cka.append(output_cka([expert(probe_TD) for expert in blocks[layer].experts]))
    counts_LME = torch.stack(list(counts.values())).double().cpu()
    return RoutingStatistics(
        layers=list(counts),
        load_LME=counts_LME / counts_LME.sum(-1, keepdim=True).clamp(min=1),
        total_load_LE=counts_LME.sum(1) / counts_LME.sum((1, 2)).unsqueeze(-1),
        logits=logits,
        cka_LEE=torch.stack(cka),
    )


def output_cka(outputs: list[Tensor]) -> Tensor:
    """Linear CKA (Kornblith et al. 2019) between every two experts' outputs (T, D) on the same tokens: (E, E), 0 to 1.

    An expert whose output does not vary resembles nothing, not even itself: nan.
    """
    doubles = [out_TD.double().cpu() for out_TD in outputs]
    centred = [out_TD - out_TD.mean(0) for out_TD in doubles]
    varies = [c.norm() > 1e-6 * out_TD.norm() for c, out_TD in zip(centred, doubles, strict=True)]
    norms = [(c.T @ c).norm() if v else torch.tensor(torch.nan) for c, v in zip(centred, varies, strict=True)]
    return torch.stack(
        [
            torch.stack([(a.T @ b).norm() ** 2 / (norm_a * norm_b) for b, norm_b in zip(centred, norms, strict=True)])
            for a, norm_a in zip(centred, norms, strict=True)
        ]
    )


def _sample(values: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return values[torch.randperm(values.shape[0], generator=generator)[:count].to(values.device)]
