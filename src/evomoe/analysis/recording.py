"""Watching a sparse model while it runs: what its routers chose, and a sample of what they saw, in bounded memory.

M = 2 modalities (text, image), E experts, T tokens, D hidden.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

from evomoe.model.routing import LayerRecord
from evomoe.model.sparse_model import is_sparse
from evomoe.model.without_waiting import occurrences

LARGE_SCORE = 100.0
"""A router's score beyond which its softmax hardly changes any more."""
SMALLER_SCORES = (
    "a lower `stage3.learning_rate`, a larger weight of the loss z in `aux_losses`, or, for router dtr, `router_options.cap=30`"
)
"""What keeps a router's scores small."""
MODALITIES = ("text", "image")

Records = Mapping[int, LayerRecord]


def expert_counts(record: LayerRecord) -> Tensor:
    """How many slots of each modality went to each expert in one layer, (M, E) int64; slots without an expert are none."""
    E, index_TK = record.routing.logits_TE.shape[-1], record.routing.index_TK
    kind_TK = record.modality.is_image_T.long().unsqueeze(-1).expand_as(index_TK)
    cells = len(MODALITIES) * E
    cell_TK = (kind_TK * E + index_TK).masked_fill(index_TK >= E, cells)
    return occurrences(cell_TK, cells).view(len(MODALITIES), E)


def expert_names(real: int, all_of_them: int) -> list[str]:
    """Names for reports: the real experts from 1 on, then the virtual ones from 1 on."""
    return [*(f"expert {n + 1}" for n in range(real)), *(f"virtual {n + 1}" for n in range(all_of_them - real))]


class TokenSample:
    """A uniform sample of the tokens that came by, of at most ``size``: the same tokens in every layer, in random order.

    Attributes:
        inputs: (N, D) by layer, what the layer was given.
        logits: (N, E) by layer, the router's.
    """

    def __init__(self, size: int, generator: torch.Generator) -> None:
        self.size, self._generator = size, generator
        self.inputs: dict[int, Tensor] = {}
        self.logits: dict[int, Tensor] = {}
        self._keys_N = torch.empty(0, dtype=torch.float64)

    def add(self, tokens_N: Tensor, records: Records) -> None:
        """Takes in one pass's tokens, given by their indices: each draws a number, and the largest numbers stay."""
        had, drawn_N = len(self._keys_N), torch.rand(len(tokens_N), generator=self._generator, dtype=torch.float64)
        self._keys_N, order = torch.cat([self._keys_N, drawn_N]).sort(descending=True)
        self._keys_N, order = self._keys_N[: self.size], order[: self.size]
        is_new = order >= had
        new = tokens_N[(order[is_new] - had).to(tokens_N.device)]
        order[is_new] = had + torch.arange(len(new))
        for layer, record in records.items():
            for kept, values in ((self.inputs, record.x_TD), (self.logits, record.routing.logits_TE)):
                added = values.detach()[new].cpu()
                kept[layer] = torch.cat([kept[layer], added])[order] if layer in kept else added


class RoutingRecording:
    """What the routers did in the passes that were watched; padding excluded.

    Attributes:
        counts: (M, E) int64 by layer, how many slots of each modality each expert got.
        tokens_M: (M,) int64, how many tokens of each modality came by; ``tokens``, of both.
        samples: a sample of the tokens, by modality.
    """

    def __init__(self, max_tokens: int, seed: int) -> None:
        generator = torch.Generator("cpu").manual_seed(seed)
        self.counts: dict[int, Tensor] = {}
        self.tokens_M = torch.zeros(len(MODALITIES), dtype=torch.int64)
        self.samples = {name: TokenSample(max_tokens, generator) for name in MODALITIES}

    @property
    def tokens(self) -> int:
        return int(self.tokens_M.sum())

    @torch.no_grad()
    def add(self, records: Records) -> None:
        """Takes in one forward pass."""
        for layer, record in records.items():
            counts_ME = expert_counts(record).cpu()
            self.counts[layer] = self.counts[layer] + counts_ME if layer in self.counts else counts_ME
        modality = next(iter(records.values())).modality
        self.tokens_M += occurrences(modality.is_image_T.long(), len(MODALITIES)).cpu()
        for name, tokens_N in zip(MODALITIES, reversed(modality.tokens), strict=True):
            self.samples[name].add(tokens_N, records)


@contextmanager
def record_routing(
    model: PreTrainedModel,
    max_tokens: int = 2048,
    seed: int = 0,
    prompts_only: bool = False,
    on_pass: Callable[[Records], Any] = lambda records: None,
) -> Iterator[RoutingRecording]:
    """Within the block, every forward pass of the model, also within ``generate``, is taken in.

    Memory is bounded: counts, and for each layer and modality at most ``max_tokens`` tokens' inputs and logits, on the CPU.

    Args:
        model: a sparse model.
        max_tokens: size of the sample of each modality.
        seed: draws the sample.
        prompts_only: leave out the passes of one token per row that ``generate`` makes after the first. In them rows whose answer
            has ended go on until the longest has, and nothing tells these tokens from others.
        on_pass: is told what each layer did in each pass.

    Raises:
        ValueError: the model is not a sparse model that this library can watch.
    """
    recording = RoutingRecording(max_tokens, seed)

    def note(records: Records) -> None:
        if not prompts_only or next(iter(records.values())).modality.shape[1] > 1:
            recording.add(records)
        on_pass(records)

    with _listening(model, note):
        yield recording


@contextmanager
def _listening(model: PreTrainedModel, note: Callable[[Records], None]) -> Iterator[None]:
    """Within the block, ``note`` is told what each MoE layer did, pass by pass.

    The one place that knows how a model shows its routing: another kind of sparse model needs another branch here.
    """
    if not is_sparse(model):
        raise ValueError(
            f"{type(model).__name__} is not an EvoMoE model, so it has no routers to watch; `evomoe upcycle` makes one."
        )

    wants_dict: list[bool] = []

    def ask(module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        wants_dict.append(kwargs.get("return_dict") is not False)
        return args, kwargs | {"output_router_logits": True, "return_dict": True}

    def listen(module, args: tuple, output: Any) -> Any:
        note(output["records"])
        return output if wants_dict.pop() else output.to_tuple()

    handles = [model.register_forward_pre_hook(ask, with_kwargs=True), model.register_forward_hook(listen)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
