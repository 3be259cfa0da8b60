"""The model card and the report come last and are worth least: they never cost a model."""

import pytest
from small_runs import make_recipe

from evomoe.model.model_card import CARD
from evomoe.training.run import run
from evomoe.training.trainer import EvoMoETrainer


@pytest.fixture
def stage3(workspace):
    return make_recipe(workspace, stages=(3,), steps=2, expert_init="noise", init_options={"std": 0.1})


@pytest.mark.parametrize("licence", ["[mit, apache-2.0]", "2", "2024-01-01", "[mit", "{a: b}", "null", "yes"])
def test_an_odd_card_of_the_dense_model_costs_no_model(workspace, stage3, licence):
    (workspace / "model" / CARD).write_text(f"---\nlicense: {licence}\n---\n")
    final = run(stage3)
    assert (final / CARD).is_file() and (workspace / "run" / "report.md").is_file()


def test_a_card_that_cannot_be_made_is_known_before_training(stage3, monkeypatch):
    def broken(*args, **kwargs):
        raise ValueError("no card today")

    monkeypatch.setattr("evomoe.training.stages.stage3_routing.model_card", broken)
    monkeypatch.setattr(EvoMoETrainer, "training_step", lambda *a, **k: pytest.fail("trained first"))
    with pytest.raises(ValueError, match="no card today"):
        run(stage3, report=False)


def test_one_that_fails_after_all_costs_only_itself(workspace, stage3, monkeypatch, caplog):
    made = []

    def broken_later(*args, **kwargs):
        made.append(args)
        if len(made) > 1:
            raise RuntimeError("no card today")
        return "card"

    monkeypatch.setattr("evomoe.training.stages.stage3_routing.model_card", broken_later)
    final = run(stage3, report=False)
    assert (final / "model.safetensors").is_file() and "written without a model card: no card today" in caplog.text


def test_a_report_that_fails_costs_only_itself_and_is_tried_again(workspace, stage3, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr("evomoe.training.run.report_run", lambda *a: 1 / 0)
        final = run(stage3)
    assert (
        final / CARD
    ).is_file() and "its report could not be written (division by zero); `resume=True` tries again" in caplog.text
    assert run(stage3, resume=True) == final and (workspace / "run" / "report.md").is_file()
