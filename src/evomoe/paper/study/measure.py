"""Scores of a model on the seven small benchmarks, with every answer, so that models can be compared question by question."""

from functools import partial
from pathlib import Path
from typing import Any

from transformers.modeling_utils import PreTrainedModel

from evomoe.analysis.calibration import mean_real_experts
from evomoe.analysis.intervention import Intervention
from evomoe.analysis.interventions import applied
from evomoe.analysis.recording import record_routing
from evomoe.conversion.expert_init import option_from_stage2
from evomoe.conversion.upcycling import upcycle
from evomoe.evaluation.average import mean_score
from evomoe.evaluation.generation import answers_by_id
from evomoe.model.sparse_model import SparseModel, is_sparse
from evomoe.paper.study.shared_inputs import benchmarks
from evomoe.recipe.recipe import Recipe
from evomoe.support.device import best_device, moved, prepare

LONGEST = 16
"""Tokens of an answer: enough for every right one in the mini world."""
CALIBRATED = 20
"""Questions of each benchmark on which the number of experts per token is set."""


def score_model(
    model: PreTrainedModel, base: Path, world: Path, split: str, limit: int, intervention: Intervention
) -> dict[str, Any]:
    """Answers all questions with a model, its routers changed as the intervention says.

    Args:
        base: folder of the model from which it was made; its processor makes the prompts.
        split: "validation" or "test".
        limit: questions per benchmark; 0 for all.

    Returns:
        ``scores`` by benchmark, ``average``, and ``answers`` by benchmark and question id; of a sparse model also
        ``experts_per_token`` by benchmark: how many (real) experts a prompt's token had in an MoE layer, on average.
    """
    device = best_device()
    prepare(device)
    model = moved(model, device)
    scores, answers, experts = {}, {}, {}
    with applied(model, intervention, partial(_ask_a_few, base=base, world=world)):
        for prepared in benchmarks(base, world / split, limit):
            benchmark, questions = prepared.benchmark, prepared.questions
            asked = partial(
                answers_by_id, questions=questions, prompts=prepared.prompts, max_new_tokens=LONGEST, label=benchmark.name
            )
            if is_sparse(model):
                with record_routing(model, max_tokens=1, prompts_only=True) as recording:
                    given = asked(model)
                experts[benchmark.name] = mean_real_experts(model, recording)
            else:
                given = asked(model)
            scores[benchmark.name] = benchmark.score(questions, given, "official").score
            answers[benchmark.name] = given
    found = {"scores": scores, "average": mean_score(scores), "answers": answers}
    if experts:
        found["experts_per_token"] = experts
    return found


def with_evolved_experts(dense: PreTrainedModel, experts: Path, recipe: Recipe) -> SparseModel:
    """The model of Stage II with the experts that evolved beside it, from their file; its routers are untrained."""
    given = {option_from_stage2(recipe.expert_init): str(experts)}
    options = {"num_experts": recipe.moe.num_experts, "moe_layers": recipe.placement()}
    return upcycle(dense, expert_init=recipe.expert_init, init_options=given, router="linear", **options)


def _ask_a_few(model: PreTrainedModel, base: Path, world: Path) -> None:
    """A part of the validation split, one token of an answer each, to measure what the routers do."""
    for probe in benchmarks(base, world / "validation", CALIBRATED):
        answers_by_id(model, probe.questions, probe.prompts, 1, probe.benchmark.name)
