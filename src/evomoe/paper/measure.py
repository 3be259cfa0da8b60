"""Scores of a model on the seven small benchmarks, with every answer, so that models can be compared question by question."""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from transformers.modeling_utils import PreTrainedModel

from evomoe.analysis.calibration import calibrate, mean_real_experts
from evomoe.analysis.interventions import only_expert, shuffled_importance, shuffled_routers
from evomoe.analysis.recording import record_routing
from evomoe.budget import first_router, set_experts_per_token
from evomoe.evaluation.average import mean_score
from evomoe.evaluation.generation import answers_by_id
from evomoe.loading import load_model
from evomoe.modeling import EvoMoEMixin
from evomoe.paper.in_memory import benchmarks
from evomoe.paper.task import Scoring, Training
from evomoe.run_folder import stage_folder
from evomoe.stages.stage2_evolution import EXPERTS
from evomoe.support.device import best_device, prepare
from evomoe.upcycling import upcycle

LONGEST = 16
"""Tokens of an answer: enough for every right one in the mini world."""
CALIBRATED = 20
"""Questions of each benchmark on which the number of experts per token is set."""


def score_model(scoring: Scoring, study: Path) -> dict[str, Any]:
    """Answers all questions with the model that the scoring names.

    Returns:
        ``scores`` by benchmark, ``average``, and ``answers`` by benchmark and question id; of a sparse model also
        ``experts_per_token`` by benchmark: how many (real) experts a prompt's token had in an MoE layer, on average.
    """
    device = best_device()
    prepare(device)
    model = _model(scoring, study).to(device)
    scores, answers, experts = {}, {}, {}
    with _changed(model, scoring):
        for prepared in benchmarks(scoring.base, scoring.world / scoring.split, scoring.limit):
            benchmark, questions = prepared.benchmark, prepared.questions
            asked = partial(
                answers_by_id, questions=questions, prompts=prepared.prompts, max_new_tokens=LONGEST, label=benchmark.name
            )
            if isinstance(model, EvoMoEMixin):
                with record_routing(model, max_tokens=1, prompts_only=True) as recording:
                    given = asked(model)
                experts[benchmark.name] = mean_real_experts(model, recording)
            else:
                given = asked(model)
            scores[benchmark.name] = benchmark.score(questions, given, "official").score
            answers[benchmark.name] = given
    return {"scores": scores, "average": mean_score(scores), "answers": answers} | (
        {"experts_per_token": experts} if experts else {}
    )


def _model(scoring: Scoring, study: Path) -> PreTrainedModel:
    model = load_model(scoring.model(study))
    if isinstance(scoring.training, Training) and scoring.training.stage == 2 and scoring.expert is not None:
        recipe = scoring.training.recipe
        experts = {"experts": str(stage_folder(scoring.training.folder(study), 2).path / EXPERTS)}
        options = {"num_experts": recipe.moe.num_experts, "moe_layers": recipe.placement()}
        return upcycle(model, expert_init="evolved", init_options=experts, router="linear", **options)
    return model


@contextlib.contextmanager
def _changed(model: PreTrainedModel, scoring: Scoring) -> Iterator[None]:
    """Within the block, the model's routers are as the scoring wants them."""
    if scoring.experts_per_token is not None:
        _set_experts_per_token(model, scoring)
    with contextlib.ExitStack() as stack:
        if scoring.expert is not None:
            stack.enter_context(only_expert(model, scoring.expert))
        if scoring.shuffle is not None:
            stack.enter_context(shuffled_routers(model, scoring.shuffle))
        if scoring.shuffle_importance is not None:
            stack.enter_context(shuffled_importance(model, scoring.shuffle_importance))
        yield


def _set_experts_per_token(model: PreTrainedModel, scoring: Scoring) -> None:
    """Of routers with a budget the mean on a part of the validation split, of others the number of slots."""
    number = scoring.experts_per_token
    assert number is not None
    if first_router(model).budgets(model.config.moe.num_experts_per_tok) is None:
        set_experts_per_token(model, number)
        return
    probes = benchmarks(scoring.base, scoring.world / "validation", CALIBRATED)

    def ask(model: PreTrainedModel) -> None:
        for probe in probes:
            answers_by_id(model, probe.questions, probe.prompts, 1, probe.benchmark.name)

    calibrate(model, number, ask)
