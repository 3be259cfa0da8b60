"""The loss from labelled tokens alone is the loss of all logits, for every family."""

import dataclasses
import json

import pytest
import torch
from small_runs import make_recipe
from tiny import FAMILIES, QUICK, inputs_for, make
from transformers.trainer_pt_utils import LabelSmoother

from evomoe import upcycle
from evomoe.data.labels import IGNORED
from evomoe.training.label_loss import loss_on_labels
from evomoe.training.run import run

every_family = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)


def labelled(family: str) -> dict[str, torch.Tensor]:
    """Two records, of which few tokens have a label, the first token of one of them too."""
    inputs = inputs_for(family, (1, 0), text=8)
    labels = torch.full_like(inputs["input_ids"], IGNORED)
    labels[0, -4:-2], labels[1, 3:6], labels[1, 0] = inputs["input_ids"][0, -4:-2], inputs["input_ids"][1, 3:6], 5
    return inputs | {"labels": labels}


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@every_family
@pytest.mark.parametrize("items", [None, 7])
def test_loss_and_gradients_are_those_of_all_logits(family, items):
    for model in (make(family).train(), upcycle(make(family), expert_init="noise", init_options={"std": 0.1}).train()):
        inputs = labelled(family) | ({} if items is None else {"num_items_in_batch": torch.tensor(items)})
        whole = model(**inputs)
        whole.loss.backward()
        expected = gradients(model)
        with loss_on_labels(model, inputs["labels"]):
            part = model(**inputs)
        part.loss.backward()
        torch.testing.assert_close(part.loss, whole.loss, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(gradients(model), expected, atol=1e-6, rtol=1e-4)
        assert part.logits.shape == (1, 5, whole.logits.shape[-1]) and whole.logits.ndim == 3 and whole.logits.shape[1] > 5
        after = model(**inputs)  # nothing is left of it
        assert torch.equal(after.logits, whole.logits) and torch.equal(after.loss, whole.loss)


def test_smoothing_is_that_of_the_trainer_for_language_models(llava):
    inputs = labelled("llava")
    expected = LabelSmoother(epsilon=0.2)(llava(**inputs), inputs["labels"], shift_labels=True)
    with loss_on_labels(llava, inputs["labels"], 0.2):
        found = llava(**inputs).loss
    torch.testing.assert_close(found, expected)
    with torch.no_grad(), loss_on_labels(llava, inputs["labels"]):
        assert not torch.isclose(llava(**inputs).loss, found)


def test_a_head_that_is_given_tokens_in_another_shape_computes_all(llava):
    inputs = labelled("llava")
    expected = llava(**inputs)
    llava.lm_head.register_forward_pre_hook(lambda _, given: (given[0].flatten(0, 1),))
    with loss_on_labels(llava, inputs["labels"]):
        found = llava(**inputs)
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.logits, expected.logits.flatten(0, 1))


def test_an_error_leaves_the_model_as_it_was(llava):
    inputs = labelled("llava")
    expected = llava(**inputs).loss
    own = lambda logits, labels, **_: logits.sum() * 0 + 3  # noqa: E731
    llava.loss_function = own
    with pytest.raises(RuntimeError, match="in the middle"), loss_on_labels(llava, inputs["labels"]):
        raise RuntimeError("in the middle")
    assert llava.loss_function is own and llava(**inputs).loss == 3
    del vars(llava)["_loss_function"]
    assert torch.equal(llava(**inputs).loss, expected)


def test_a_run_with_smoothing_keeps_the_auxiliary_losses(workspace):
    recipe = make_recipe(
        workspace,
        stages=(3,),
        expert_init="noise",
        init_options={"std": 0.1},
        steps=2,
        trainer={"label_smoothing_factor": 0.3, "logging_steps": 1},
    )
    run(recipe)
    run(dataclasses.replace(recipe, output=str(workspace / "sharp"), trainer={"logging_steps": 1}))
    smooth, sharp = (json.loads((workspace / name / "metrics.jsonl").read_text().splitlines()[0]) for name in ("run", "sharp"))
    assert smooth["loss"] != pytest.approx(sharp["loss"], abs=1e-3)
    assert smooth["aux/balance"] == pytest.approx(sharp["aux/balance"])
