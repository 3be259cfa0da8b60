"""Scores of a model on the seven small benchmarks, with every answer, so that models can be compared question by question."""

import contextlib
from pathlib import Path
from typing import Any

import torch
from transformers.modeling_utils import PreTrainedModel

from evomoe.analysis.interventions import only_expert, shuffled_routers
from evomoe.evaluation import BENCHMARKS
from evomoe.evaluation.average import PAPER, mean_score
from evomoe.evaluation.command import prepare
from evomoe.evaluation.generation import answers_by_id
from evomoe.evaluation.options import Options
from evomoe.loading import load_model, load_processor
from evomoe.paper.task import Scoring, Training
from evomoe.run_folder import stage_folder
from evomoe.stages.stage2_evolution import EXPERTS
from evomoe.upcycling import upcycle

BATCH_SIZE = 128
LONGEST = 16
"""Tokens of an answer: enough for every right one in the mini world."""


def score_model(scoring: Scoring, study: Path) -> dict[str, Any]:
    """Answers all questions with the model that the scoring names.

    Returns:
        ``scores`` by benchmark, ``average``, and ``answers`` by benchmark and question id.
    """
    torch.set_flush_denormal(True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = scoring.training.model(study) if isinstance(scoring.training, Training) else scoring.training
    processor = load_processor(source)
    model = _model(scoring, source, study).to(device)
    scores, answers = {}, {}
    options = Options(batch_size=BATCH_SIZE, data_root=str(scoring.world / scoring.split), limit=scoring.limit)
    with _changed(model, scoring):
        for name in PAPER:
            prepared = prepare(BENCHMARKS[f"mini-{name}"], processor, options)
            benchmark, questions = prepared.benchmark, prepared.questions
            given = answers_by_id(model, questions, prepared.prompts, LONGEST, benchmark.name)
            scores[benchmark.name] = benchmark.score(questions, given, "official").score
            answers[benchmark.name] = given
    return {"scores": scores, "average": mean_score(scores), "answers": answers}


def _model(scoring: Scoring, source: Path, study: Path) -> PreTrainedModel:
    model = load_model(source)
    if isinstance(scoring.training, Training) and scoring.training.stage == 2 and scoring.expert is not None:
        recipe = scoring.training.recipe
        experts = {"experts": str(stage_folder(scoring.training.folder(study), 2).path / EXPERTS)}
        options = {"num_experts": recipe.moe.num_experts, "moe_layers": recipe.placement()}
        return upcycle(model, expert_init="evolved", init_options=experts, router="linear", **options)
    return model


def _changed(model: PreTrainedModel, scoring: Scoring) -> contextlib.AbstractContextManager[Any]:
    if scoring.expert is not None:
        return only_expert(model, scoring.expert)
    if scoring.shuffle is not None:
        return shuffled_routers(model, scoring.shuffle)
    return contextlib.nullcontext()
