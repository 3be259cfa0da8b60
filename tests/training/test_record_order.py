"""The order of a stage's records: shuffled, the same after a restart, and never what an earlier stage on the same data took."""

from dataclasses import replace
from itertools import pairwise

import pytest
from small_runs import make_recipe

from evomoe.data.conversations import ConversationDataset
from evomoe.recipe.options import StageOptions
from evomoe.recipe.recipe import Recipe
from evomoe.support.errors import OptionError
from evomoe.training.record_order import RecordOrder, planned_steps, seen_records, taken_records
from evomoe.training.run import run

LENGTHS = [10, 50, 11, 49, 12, 48, 13, 47] * 4


def of_stages(*stages: StageOptions) -> Recipe:
    return Recipe("model", "data.json", "out", stages=(2, 3), stage2=stages[0], stage3=stages[1])


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_a_pass_has_every_record_once_and_is_the_same_after_a_restart(lengths):
    order, again = (RecordOrder(32, 3, taken=64, lengths=lengths, batch_size=2) for _ in range(2))
    first = list(order)
    assert list(again) == first and sorted(first) == list(range(32)) == sorted(order)
    again.set_epoch(1)
    assert list(again) != first and sorted(again) == list(range(32))
    assert list(RecordOrder(32, 4, taken=64, lengths=lengths, batch_size=2)) != first


def test_batches_are_of_similar_length():
    first = list(RecordOrder(32, 3, taken=32, lengths=LENGTHS, batch_size=2))
    spread = [abs(LENGTHS[a] - LENGTHS[b]) for a, b in zip(first[::2], first[1::2], strict=True)]
    assert sum(gap > 5 for gap in spread) <= 3  # of 16 batches: where one length meets the other, and the longest comes first


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("parts", [(12, 8, 12), (20, 12, 32), (40, 8, 16), (32, 32)])
def test_parts_that_go_on_from_each_other_take_no_record_twice_before_all_were_taken(lengths, parts):
    taken = []
    for part in parts:
        order = RecordOrder(32, 3, len(taken), part, lengths, batch_size=2)
        of_part = []
        for epoch in range(2):
            order.set_epoch(epoch)
            of_part += list(order)
        taken += of_part[:part]
    passes = [taken[start : start + 32] for start in range(0, len(taken), 32)]
    assert all(len({*one}) == len(one) for one in passes)
    assert all(first != second for first, second in pairwise(passes))


def test_records_are_counted_as_the_trainer_takes_them(monkeypatch):
    by_steps = StageOptions(steps=5, batch_size=4, accumulation=2, train="ffn")
    by_passes = StageOptions(epochs=1.5, batch_size=4, accumulation=2, train="router")
    recipe = of_stages(by_steps, by_passes)
    assert taken_records(recipe, 2, 100) == 40 and taken_records(recipe, 2, 30) == 30 + 8  # a pass of 30 is four steps
    assert planned_steps(recipe, 3, 32) == 6 and taken_records(recipe, 3, 32) == 48
    assert [seen_records(recipe, stage, 100) for stage in (2, 3)] == [0, 40]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert seen_records(recipe, 3, 100) == 80


def test_only_stages_on_the_same_data_count(monkeypatch):
    stage = StageOptions(steps=5, batch_size=4, accumulation=2, train="ffn")
    assert seen_records(of_stages(replace(stage, data="other.json"), stage), 3, 100) == 0
    other = replace(stage, data="other.json")
    assert seen_records(of_stages(other, other), 3, 100) == 40
    assert seen_records(of_stages(stage, replace(stage, seen_records=7)), 3, 100) == 7
    with pytest.raises(OptionError, match=r"seen_records`?: -1 must be a whole number of at least 0") as caught:
        of_stages(stage, replace(stage, seen_records=-1))
    assert caught.value.option == "stage3.seen_records"


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
@pytest.mark.parametrize("going_on", [True, False])
def test_stage_3_trains_on_records_that_stage_2_has_not_seen(workspace, monkeypatch, strategy, going_on):
    recipe = make_recipe(workspace, f"{strategy}-{going_on}", steps=1, trainer={"train_sampling_strategy": strategy})
    if not going_on:
        recipe = recipe.but(stage3=replace(recipe.stage3, seen_records=0))
    read, get = [], ConversationDataset.__getitem__
    monkeypatch.setattr(ConversationDataset, "__getitem__", lambda self, number: read.append(number) or get(self, number))
    run(recipe, report=False)
    second = len(read) // 2  # each stage reads a batch ahead
    stage2, stage3 = {*read[:8]}, {*read[second : second + 8]}
    assert len(stage2) == len(stage3) == 8
    assert stage2.isdisjoint(stage3) if going_on else stage2 == stage3


def test_a_recipe_from_before_takes_its_records_as_it_did(workspace):
    recipe = make_recipe(workspace)
    file = workspace / "old.json"
    recipe.save(file)
    text = file.read_text()
    assert text.count('"seen_records": null,') == 4
    file.write_text(text.replace('"seen_records": null,', ""))
    assert Recipe.load(file).stage3.seen_records == 0 and recipe.stage3.seen_records is None


@pytest.mark.parametrize("shares", [[(10, 10), (7, 3), (5, 12)], [(8, 3)], [(3, 3), (4, 4)]])
def test_a_share_takes_each_record_once_before_one_twice(shares):
    """Over passes too; and what a source's records are does not depend on where a stage began."""
    per_pass = sum(taken for _, taken in shares)
    order = RecordOrder(per_pass, 3, shares=shares)
    passes = [order.of_epoch(epoch) for epoch in range(12)]
    first = 0
    for records, taken in shares:
        drawn = [[number - first for number in one if first <= number < first + records] for one in passes]
        assert {len(one) for one in drawn} == {taken}
        counts = [0] * records
        for one in drawn:
            for number in one:
                counts[number] += 1
            assert max(counts) - min(counts) <= 1
        if taken % records:
            assert sorted(drawn[0]) != sorted(drawn[1])
        first += records
    going_on = RecordOrder(per_pass, 3, seen=per_pass + 2, shares=shares)
    assert going_on.of_epoch(0) == passes[1][2:] + passes[2][:2]
    assert RecordOrder(per_pass, 4, shares=shares).of_epoch(0) != passes[0]


def test_equal_weights_take_all_records_as_one_source_does():
    one, several = RecordOrder(12, 5), RecordOrder(12, 5, shares=[(4, 4), (8, 8)])
    assert one.of_epoch(0) == several.of_epoch(0) and one.of_epoch(1) == several.of_epoch(1)


def test_lengths_belong_to_records_not_to_places():
    lengths = [10] * 60 + [50] * 60
    order = RecordOrder(120, 3, taken=120, lengths=lengths, batch_size=2, shares=[(60, 30), (60, 90)])
    batches = [order.of_step(step, 2, 1) for step in range(60)]
    assert (
        sum(lengths[a] != lengths[b] for a, b in batches) <= 10
    )  # of 60; where one length meets the other, or the longest comes first
    assert sorted(number // 60 for batch in batches for number in batch) == [0] * 30 + [1] * 90
