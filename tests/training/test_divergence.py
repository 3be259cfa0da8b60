"""Numbers that are none end training before they reach the weights, with the step, its records and the last good checkpoint."""

import math
from dataclasses import replace

import pytest
import torch
from small_runs import make_recipe

from evomoe.data.conversations import ConversationDataset
from evomoe.training.divergence import DivergenceCallback
from evomoe.training.record_order import RecordOrder
from evomoe.training.run import run


def test_a_rate_that_no_model_survives_ends_the_run(workspace):
    recipe = make_recipe(workspace, stages=(1,), steps=6)
    recipe = recipe.but(stage1=replace(recipe.stage1, learning_rate=100.0), trainer={"optim": "sgd", "max_grad_norm": 0.0})
    with pytest.raises(ValueError, match=r"^Training stopped before step \d: the (loss is|gradients are) not finite") as caught:
        run(recipe, report=False)
    assert "Try a lower `learning_rate`" in str(caught.value)
    assert not (workspace / "run" / "stage1_warmup" / "model").exists()


def test_the_records_of_the_step_and_the_last_checkpoint_are_named(workspace, monkeypatch):
    recipe = make_recipe(workspace, stages=(1,), steps=4)
    recipe = recipe.but(trainer={"train_sampling_strategy": "random"})
    seen, get = [], ConversationDataset.__getitem__

    def poisoned(self, number):
        seen.append(number)
        item = get(self, number)
        if len(seen) == 1 + 8 * 2 + 2 and "pixel_values" in item:  # the second record of the third step; one was looked at before
            item["pixel_values"] = item["pixel_values"] * math.nan
        return item

    monkeypatch.setattr(ConversationDataset, "__getitem__", poisoned)
    with pytest.raises(ValueError, match=r"^Training stopped before step 3: the loss is not finite") as caught:
        run(recipe, report=False)
    message = str(caught.value)
    assert all(
        f"record {number} " in message or f"record {number}," in message or f"record {number} (" in message
        for number in seen[17:22]
    )
    assert " and 3 more records. The last good checkpoint: " in message and "checkpoint-2." in message


def test_gradients_are_looked_at_too_unless_a_scaler_does():
    model, found = torch.nn.Linear(2, 2), DivergenceCallback(lambda step: [])
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state = type("State", (), {"global_step": 0})()

    def step(fp16: bool) -> None:
        found.note(torch.tensor(1.0))
        args = type("Args", (), {"fp16": fp16, "output_dir": "nowhere"})()
        found.on_pre_optimizer_step(args, state, None, model=model)

    step(False)
    model.bias.grad[0] = math.inf
    step(True)
    with pytest.raises(ValueError, match="before step 1: the gradients are not finite. There is no checkpoint yet"):
        step(False)


def test_the_records_of_a_step_are_those_that_the_order_gives():
    order = RecordOrder(30, 3, taken=60)
    taken = [record for epoch in range(2) for record in order.of_epoch(epoch)]
    steps = [order.of_step(step, 4, 2) for step in range(8)]  # a pass of 30 is four steps, the last of six records
    assert [len(step) for step in steps] == [8, 8, 8, 6] * 2 and sum(steps, []) == taken
