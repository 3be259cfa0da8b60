"""Records that share a row are what they are alone, for every family, or are refused."""

import pytest
import torch
from tiny import FAMILIES, QUICK, inputs_for, make, make_processor

from evomoe import upcycle
from evomoe.data.conversations import TOKEN_KEYS, Collator
from evomoe.support.errors import OptionError
from evomoe.training.packing import check_packing, packed_inputs

REFUSED = {"paligemma", "gemma3", "mllama", "qwen3.5", "lfm2-vl"}


def items_of(family: str, images=(1, 0, 2, 1)) -> list[dict[str, torch.Tensor]]:
    items = []
    for number, count in enumerate(images):
        one = inputs_for(family, (count,), text=4 + 3 * number)
        item = {key: value[0] if key in TOKEN_KEYS else value for key, value in one.items()}
        labels = item["input_ids"].clone()
        labels[: 3 + number] = -100
        items.append(item | {"labels": labels})
    return items


@pytest.mark.parametrize("family", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in FAMILIES])
def test_packed_records_are_scored_as_alone_or_refused(family):
    model, items = make(family), items_of(family)
    if family in REFUSED:
        with pytest.raises(OptionError, match="share a row"):
            check_packing(model, items, make_processor())
        return
    check_packing(model, items, make_processor())
    check_packing(upcycle(model, expert_init="noise", init_options={"std": 0.1}, moe_layers="all"), items, make_processor())
