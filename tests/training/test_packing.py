"""Records that share a row are what they are alone, for every family, or are refused."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import make_recipe, weights
from tiny import FAMILIES, QUICK, inputs_for, make, make_processor

from evomoe import upcycle
from evomoe.data.conversations import TOKEN_KEYS, Collator, rows_of, short_rows
from evomoe.data.labels import IGNORED
from evomoe.support.errors import OptionError
from evomoe.training import packing
from evomoe.training.packing import check_packing, packed_inputs
from evomoe.training.run import run

REFUSED = {"paligemma", "gemma3", "mllama", "qwen3.5", "lfm2-vl"}
every_family = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)


def items_of(family: str, images=(1, 0, 2, 1)) -> list[dict[str, torch.Tensor]]:
    """Records of different lengths, with labels from some place on."""
    items = []
    for number, count in enumerate(images):
        one = inputs_for(family, (count,), text=4 + 3 * number)
        item = {key: value[0] if key in TOKEN_KEYS else value for key, value in one.items()}
        labels = item["input_ids"].clone()
        labels[: 3 + number] = IGNORED
        items.append(item | {"labels": labels})
    return items


@every_family
def test_packed_records_are_scored_as_alone_or_refused(family):
    model, items = make(family), items_of(family)
    if family in REFUSED:
        with pytest.raises(OptionError, match="share a row"):
            check_packing(model, items, make_processor())
        return
    check_packing(model, items, make_processor())
    check_packing(upcycle(model, expert_init="noise", init_options={"std": 0.1}, moe_layers="all"), items, make_processor())


@pytest.mark.parametrize(
    "family", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in FAMILIES if n not in REFUSED]
)
@pytest.mark.parametrize("kind", ["rows", "one row"])
def test_loss_and_gradients_are_those_of_the_padded_batch(family, kind):
    model = upcycle(make(family), expert_init="noise", init_options={"std": 0.1}).train()
    items, found = items_of(family, (1, 0, 2, 0, 0)), []
    for packed in ("", kind):
        batch = Collator(make_processor(), packing=packed)(items)
        inputs = packed_inputs(model, batch) if packed else batch
        model.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        found.append((loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}))
        rows = len(batch["input_ids"])
        assert rows == {"": 5, "rows": rows, "one row": 1}[packed] and (rows < 5) == bool(packed)
    (padded, of_padded), (packed_loss, of_packed) = found
    torch.testing.assert_close(packed_loss, padded, atol=1e-5, rtol=1e-5)
    assert of_packed.keys() == of_padded.keys()
    torch.testing.assert_close(of_packed, of_padded, atol=1e-5, rtol=1e-4)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(0, 30))
def test_every_item_has_one_row_with_room_for_it(lengths, more):
    room = max(lengths) + more
    rows = rows_of(lengths, room)
    assert sorted(number for row in rows for number in row) == [*range(len(lengths))]
    used = [sum(lengths[number] for number in row) for row in rows]
    assert max(used) <= room
    assert all(first + second > room for i, first in enumerate(used) for second in used[i + 1 :])  # no two rows fit into one


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40))
def test_short_rows_hold_every_item_once_and_cost_no_more_than_padding(lengths):
    rows = short_rows(lengths)
    assert sorted(number for row in rows for number in row) == [*range(len(lengths))]
    assert len(rows) * max(sum(lengths[number] for number in row) for row in rows) <= len(lengths) * max(lengths)


def test_rows_are_filled_but_not_long_for_nothing():
    assert len(short_rows([100] * 64)) == 64  # nothing to fill: longer rows would cost attention alone
    filled = short_rows([226, 241, 256, 286, 336, 416, 80, 300])
    width = max(sum([226, 241, 256, 286, 336, 416, 80, 300][number] for number in row) for row in filled)
    assert 2141 / (len(filled) * width) > 0.8 and width < 700


def test_the_layout_by_hand():
    items = [
        {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids), dtype=torch.long), "labels": torch.tensor(ids)}
        for ids in ([11, 12], [21, 22, 23, 24], [31])
    ]
    batch = Collator(make_processor(), packing="rows")(items)
    assert batch["input_ids"].tolist() == [[21, 22, 23, 24, 11, 12, 31]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 0]]
    # The last token of one record is not to say the first of the next.
    assert batch["labels"].tolist() == [[21, 22, 23, 24, IGNORED, 12, IGNORED]]
    assert items[2]["labels"].tolist() == [31]
    wide = Collator(make_processor(), packing="rows", pad_to_multiple_of=4)(items)
    assert wide["attention_mask"].tolist() == [[1] * 7 + [0]] and wide["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 0, 0]]
    assert wide["labels"][0, -1] == IGNORED
    with pytest.raises(OptionError, match="end"):
        Collator(make_processor(), padding_side="left", packing="rows")


def test_a_model_that_looks_at_other_records_is_noticed(monkeypatch):
    # As an attention that knows nothing of positions would.
    forgetful = lambda model, batch: {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}  # noqa: E731
    monkeypatch.setattr(packing, "packed_inputs", forgetful)
    with pytest.raises(OptionError, match="differ by"):
        check_packing(make("llava"), items_of("llava"), make_processor())


def test_a_packed_run_ends_with_the_weights_of_a_padded_one(workspace):
    recipe = make_recipe(workspace, "padded", stages=(1, 2, 3))
    run(recipe)
    run(dataclasses.replace(recipe, output=str(workspace / "packed"), packing=True))
    padded, packed = (weights(workspace / name / "stage3_routing" / "model") for name in ("padded", "packed"))
    torch.testing.assert_close(packed, padded, atol=2e-4, rtol=1e-3)


def test_a_model_that_cannot_is_refused_before_training(workspace, monkeypatch):
    def refuse(*_):
        raise OptionError("packing", "Model does not.")

    monkeypatch.setattr("evomoe.training.stage.check_packing", refuse)
    with pytest.raises(OptionError, match="packing"):
        run(make_recipe(workspace, packing=True))
    assert not any((workspace / "run").rglob("checkpoint-*"))
