"""What routers did between two log lines."""

import logging

import torch

from evomoe.analysis import balance
from evomoe.analysis.recording import LARGE_SCORE, MODALITIES, SMALLER_SCORES, expert_counts, expert_names
from evomoe.model.without_waiting import occurrences
from evomoe.support.processes import is_main_process

logger = logging.getLogger(__name__)


class RouterMeter:
    """Averages the auxiliary losses and counts which expert got which kind of token, between two log lines."""

    def __init__(self) -> None:
        self.losses: dict[str, list[torch.Tensor]] = {}
        self.counts_2E: torch.Tensor | None = None
        self.tokens_2: torch.Tensor | None = None
        self.real_experts = self.slots = 0
        self.finite: dict[int, torch.Tensor] = {}
        self.largest: torch.Tensor | None = None
        self.warned = False

    @torch.no_grad()
    def update(self, outputs) -> None:
        for name, value in (outputs.get("aux_loss") or {}).items():
            self.losses.setdefault(name, []).append(value)
        by_layer = outputs.get("records") or {}
        for layer, record in by_layer.items():
            finite = record.routing.logits_TE.amax(-1).isfinite().all()  # -inf hides an expert, unless it hides all
            self.finite[layer] = self.finite[layer] & finite if layer in self.finite else finite
            largest = record.routing.logits_TE.nan_to_num(0.0, 0.0, 0.0).abs().amax()
            self.largest = largest if self.largest is None else torch.maximum(self.largest, largest.to(self.largest.device))
        records = [*by_layer.values()]
        for record in records:
            counts_2E, self.real_experts = expert_counts(record), len(record.experts)
            self.slots += record.routing.index_TK.numel()
            self.counts_2E = counts_2E if self.counts_2E is None else self.counts_2E + counts_2E
        if records:  # all layers see the same tokens
            tokens_2 = len(records) * occurrences(records[0].modality.is_image_T.long(), 2)
            self.tokens_2 = tokens_2 if self.tokens_2 is None else self.tokens_2 + tokens_2

    def check_finite(self, step: int) -> None:
        """Raises ValueError if a router's scores since the last call were not finite. It waits for the device once.

        Args:
            step: the optimiser step that is about to be made.
        """
        finite, self.finite = self.finite, {}
        if finite and not torch.stack([*finite.values()]).all():
            layer = next(layer for layer, value in finite.items() if not value)
            raise ValueError(
                f"Training stopped before step {step}: the router of layer {layer} has scores that are not finite. Its weights are as "
                f"they were after the step before. Try {SMALLER_SCORES}."
            )

    def drain(self) -> dict[str, float]:
        """The values of all processes since the last call, which are then forgotten. Every process must call.

        They are ``aux/<loss>``, ``load/<modality>/expert<n>`` or ``virtual<n>``, ``effective_experts``, ``largest_score``.

        Where slots go to no real expert, also ``experts/<modality>``: real experts per token and layer.
        """
        logs = {f"aux/{name}": torch.stack(values).mean().item() for name, values in self.losses.items()}
        if self.largest is not None:
            if torch.distributed.is_initialized():
                torch.distributed.all_reduce(self.largest, torch.distributed.ReduceOp.MAX)
            logs["largest_score"] = self.largest.item()
            if logs["largest_score"] > LARGE_SCORE and not self.warned and is_main_process():
                self.warned = True
                logger.warning(
                    "The routers' scores have reached %.4g; beyond %.0f they learn little. Try %s.",
                    logs["largest_score"],
                    LARGE_SCORE,
                    SMALLER_SCORES,
                )
        if self.counts_2E is not None:
            counts_2E, self.tokens_2, slots = self._of_all_processes()
            names = [name.replace(" ", "") for name in expert_names(self.real_experts, counts_2E.shape[1])]
            for kind, share_E in zip(MODALITIES, balance.load(counts_2E), strict=True):
                logs |= {f"load/{kind}/{name}": share.item() for name, share in zip(names, share_E, strict=True)}
            real_2 = counts_2E[:, : self.real_experts].sum(1)
            if int(real_2.sum()) < slots and self.tokens_2 is not None:
                counted = zip(MODALITIES, real_2.tolist(), self.tokens_2.tolist(), strict=True)
                logs |= {f"experts/{kind}": real / tokens for kind, real, tokens in counted if tokens}
            logs["effective_experts"] = balance.effective_experts(balance.load(counts_2E[:, : self.real_experts].sum(0))).item()
        self.losses, self.counts_2E, self.tokens_2, self.slots, self.largest = {}, None, None, 0, None
        return logs

    def _of_all_processes(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        """The counts, tokens and slots, each added up over the processes, on the CPU."""
        assert self.counts_2E is not None and self.tokens_2 is not None
        counted = [self.counts_2E, self.tokens_2, self.counts_2E.new_tensor([self.slots])]
        if torch.distributed.is_initialized():
            for count in counted:
                torch.distributed.all_reduce(count)
        counts_2E, tokens_2, slots_1 = (count.cpu() for count in counted)
        return counts_2E, tokens_2, int(slots_1)
