"""How much there is to gain by choosing among experts, and how much of it a router has gained.

Everything is of the same questions: a part of the validation split.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

from evomoe.evaluation.average import mean_score
from evomoe.evaluation.benchmark import Question
from evomoe.evaluation.prepared import Prepared

Answers = Mapping[str, str]
"""By question id."""


def best_for_each_question(
    questions: Sequence[Question], by_expert: Sequence[Answers], score: Callable[[Answers], float]
) -> tuple[float, Answers]:
    """The score if each question went to the expert that answers it best, and those answers.

    Questions that are scored together go to one expert. It starts from the best expert alone, and takes another one's answers
    wherever the score grows by it. So it is exact for scores that are sums over questions, and a lower bound for others.

    Args:
        by_expert: every expert's answers to all questions.
        score: of answers to all questions.
    """
    answers = dict(max(by_expert, key=score))
    best, units = score(answers), defaultdict(list)
    for question in questions:
        units[question.unit].append(question.id)
    for ids in units.values():
        others = {tuple(given[one] for one in ids) for given in by_expert} - {tuple(answers[one] for one in ids)}
        for other in sorted(others):
            tried = answers | dict(zip(ids, other, strict=True))
            if (found := score(tried)) > best:
                answers, best = tried, found
    return best, answers


def choosing(prepared: Sequence[Prepared], experts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What choosing is worth for one trained model.

    Args:
        prepared: the benchmarks that were asked.
        experts: what each expert alone scored and answered (``score_model``).

    Returns:
        ``alone``: AVG of each expert; ``best``: AVG if each question had its best expert.
    """
    oracle = {}
    for one in prepared:
        name, questions, rule = one.benchmark.name, one.questions, one.benchmark.score

        def score(answers: Answers, questions=questions, rule=rule) -> float:
            return rule(questions, answers, "official").score

        oracle[name], _ = best_for_each_question(questions, [expert["answers"][name] for expert in experts], score)
    return {"alone": [expert["average"] for expert in experts], "best": mean_score(oracle)}


def described(found: Mapping[str, Any]) -> str:
    """The same in words; nothing but the experts for numbers that were kept before these were."""
    text = f"alone {', '.join(f'{score:.1f}' for score in found['alone'])}"
    if "disagreement" in found:
        text += f"; they disagree on {found['disagreement']:.1f} % of the answers"
    if "best" in found:
        text += f"; the best expert for each question would have {found['best']:.1f}"
    if "whole" in found:
        over_best, over_mean = found["whole"] - max(found["alone"]), found["whole"] - mean(found["alone"])
        text += f"; the router has {found['whole']:.1f}, {over_best:+.1f} from the best expert, {over_mean:+.1f} from one drawn at random"
    return text
