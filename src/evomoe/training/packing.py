"""Several records in one row, each as if it were alone: a batch without most of its padding.

A batch has the same records and the same loss as without packing; only where their tokens lie differs. ``Collator(packing=...)`` lays
them out; this is what a model needs beside the tokens to keep them apart.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

from evomoe.data.conversations import Collator, ConversationDataset
from evomoe.model.budget import end_training, moe_restored
from evomoe.model.modality import modality_of_inputs
from evomoe.model.sparse_model import is_sparse
from evomoe.model.structure import image_token_ids, text_config
from evomoe.support.device import placed
from evomoe.support.errors import OptionError
from evomoe.support.processor import Processor

LOOKED_AT, TRIED = 64, 4
"""Records from which those with pictures are taken, and on how many a model is tried before training."""
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
"""By how much scores of a packed record may differ from its own, in standard deviations of the scores; half precision rounds more."""
TOLERANCE_HALF = 0.1
KEPT_APART = ("full_attention", "sliding_attention", "chunked_attention")
"""Kinds of layers that a mask keeps from looking at another record. A convolution or a linear attention sees what came before."""


def in_one_row(model: PreTrainedModel) -> bool:
    """Whether a batch must be a single row: FlashAttention knows records by their positions there alone, and skips what lies between."""
    return "flash_attention" in (getattr(model.config, "_attn_implementation", None) or "")


def packed_inputs(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """A packed batch as the model takes it.

    Without a mask, transformers keeps records apart by their positions, which start anew.

    Args:
        batch: of a ``Collator`` that packs.
    """
    mask_RL = batch["attention_mask"] != 0
    inputs: dict[str, Any] = {name: value for name, value in batch.items() if name != "attention_mask"} | {"use_cache": False}
    if is_sparse(model):
        ids, image_tokens = batch["input_ids"], image_token_ids(model.config)
        inputs["modality"] = modality_of_inputs(image_tokens, ids, None, mask_RL, model.get_input_embeddings())
    if (rope := _rope_index(model)) is not None and "mm_token_type_ids" in batch:
        inputs["position_ids"] = _with_places(rope, batch, mask_RL)
    return inputs


def records_to_try(dataset: ConversationDataset) -> list[dict[str, Tensor]]:
    """A few of a dataset's records as tensors, with pictures if there are any."""
    count = min(LOOKED_AT, len(dataset))
    spaced = [number * len(dataset) // count for number in range(count)]
    chosen = sorted(spaced, key=lambda number: not dataset.records[number].images)[:TRIED]
    return [dataset[number] for number in chosen]


def check_packing(model: PreTrainedModel, items: Sequence[Mapping[str, Tensor]], processor: Processor) -> None:
    """Scores a few records' tokens, in one row and in a row each.

    Args:
        items: of a ``ConversationDataset`` with this processor.

    Raises:
        OptionError: the model scores the tokens of packed records otherwise, or cannot be given them.
    """
    kinds = getattr(text_config(model.config), "layer_types", None) or ()
    if other := sorted({*kinds} - {*KEPT_APART}):
        raise _refusal(model, f"its {other[0]} layers see what lies before a record")
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), _as_it_answers(model):
            apart = _scores(model, Collator(processor)(items))
            together = _scores(model, Collator(processor, packing="one row")(items))
    except (RuntimeError, ValueError, TypeError, LookupError) as error:
        raise _refusal(model, str(error)) from error
    finally:
        model.train(training)
    apart, together = (torch.cat([one[key] for key in sorted(one)]) for one in (apart, together))
    difference = float((apart - together).abs().max() / apart.std())
    if not difference <= TOLERANCE.get(model.dtype, TOLERANCE_HALF):
        raise _refusal(model, f"its scores of their tokens differ by {difference:.2g} standard deviations")


@contextmanager
def _as_it_answers(model: PreTrainedModel) -> Iterator[None]:
    """Routers that choose by batch while they train choose by token in the block."""
    if not is_sparse(model):
        yield
        return
    with moe_restored(model):
        end_training(model)
        yield


def _scores(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> dict[tuple[int, ...], Tensor]:
    """The scores of each record's tokens, by its ids and how often these came before."""
    batch = placed({name: value for name, value in batch.items() if name != "labels"}, model)
    logits = model(**packed_inputs(model, batch) if "position_ids" in batch else batch).logits.float()
    found: dict[tuple[int, ...], Tensor] = {}
    mask, ids = batch["attention_mask"] != 0, batch["input_ids"]
    rows = torch.arange(len(ids), device=ids.device)[:, None].expand_as(ids)
    number = _record_of_token(batch["position_ids"], mask) if "position_ids" in batch else rows
    for record in range(int(number[mask].max()) + 1):
        own = mask & (number == record)
        key = tuple(ids[own].tolist())
        while key in found:
            key += (-1,)
        found[key] = logits[own]
    return found


def _refusal(model: PreTrainedModel, why: str) -> OptionError:
    name = type(model).__name__
    return OptionError(
        "packing", f"{name} does not treat records that share a row as it treats them alone: {why.rstrip('.')}. Leave it out."
    )


def _record_of_token(position_ids_RL: Tensor, mask_RL: Tensor) -> Tensor:
    """(R, L) int64: the number of each real token's record in the batch."""
    starts = (position_ids_RL == 0) & mask_RL
    return (starts.flatten().cumsum(0) - 1).view_as(starts)


def _rope_index(model: PreTrainedModel) -> Any:
    """What gives tokens their places in time, height and width, of families that have these."""
    return next((module.get_rope_index for module in model.modules() if hasattr(module, "get_rope_index")), None)


def _with_places(rope: Any, batch: Mapping[str, Tensor], mask_RL: Tensor) -> Tensor:
    """(4, R, L) int64: the position in the record, then the places that the model gives its tokens when the record is alone."""
    position_ids_RL = batch["position_ids"]
    record_N = _record_of_token(position_ids_RL, mask_RL)[mask_RL]
    position_N = position_ids_RL[mask_RL]
    shape = int(record_N.max()) + 1, int(position_N.max()) + 1

    def apart(tokens_RL: Tensor) -> Tensor:
        rows = tokens_RL.new_zeros(shape)
        rows[record_N, position_N] = tokens_RL[mask_RL]
        return rows

    vision = {name: batch[name] for name in ("image_grid_thw", "video_grid_thw", "second_per_grid_ts") if name in batch}
    if not vision:
        return position_ids_RL[None].expand(4, -1, -1)
    ids, kinds, mask = apart(batch["input_ids"]), apart(batch["mm_token_type_ids"]), apart(mask_RL.long())
    places_3BS = rope(ids, mm_token_type_ids=kinds, attention_mask=mask, **vision)[0]
    places_3RL = position_ids_RL[None].repeat(3, 1, 1)
    places_3RL[:, mask_RL] = places_3BS[:, record_N, position_N].to(places_3RL.dtype)
    return torch.cat([position_ids_RL[None], places_3RL])
