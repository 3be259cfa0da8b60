"""AnyExperts on a whole model: attached to one that is sparse already; how many experts it uses, moved and measured after training."""

import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from transformers.modeling_utils import PreTrainedModel

from evomoe.analysis.recording import RoutingRecording, record_routing
from evomoe.attaching import attach, attach_folder
from evomoe.routers.anyexperts import CAPS, AnyExpertsRouter
from evomoe.routers.base import Router, RouterWarning

__all__ = [
    "attach",
    "attach_folder",
    "calibrate",
    "mean_real_experts",
    "real_experts_per_token",
    "set_budget",
    "set_cap_scope",
    "set_experts_per_token",
]


def set_budget(model: PreTrainedModel, real: float) -> None:
    """Moves the range of slots of every AnyExperts router to where a token of importance 1/2 that uses its cap has ``real`` real experts.

    Nothing is trained, and the range keeps its width. The mean over tokens is another number, most often a larger one: slots and
    caps are whole numbers, importance varies, and a token need not use its cap. ``calibrate`` finds the budget whose measured mean is the
    one wanted.

    Raises:
        ValueError: the model has no such router, the range would begin below one slot or end above the number of experts.
    """
    routers = _routers(model)
    moe = model.config.moe
    for router in routers:
        before, router.budget = router.budget, real
        try:
            router.check(moe.num_experts_per_tok, moe.gate)
        except ValueError:
            router.budget = before
            raise
    model.config.evomoe = model.config.evomoe | {"router_options": moe.router_options | {"budget": real}}


def set_cap_scope(model: PreTrainedModel, scope: str) -> None:
    """Changes what the largest share of virtual slots is a share of, in every AnyExperts router: "token", "batch" or "expectation".

    Raises:
        ValueError: the model has no such router, or there is no such scope.
    """
    routers = _routers(model)
    if scope not in CAPS:
        raise ValueError(f"there is no cap_scope '{scope}'; choose from {', '.join(CAPS)}.")
    for router in routers:
        router.cap_scope = scope
    model.config.evomoe = model.config.evomoe | {"router_options": model.config.moe.router_options | {"cap_scope": scope}}


def end_batch_scope(model: PreTrainedModel) -> None:
    """Turns a cap over the batch, which is for training alone, into one over each token's slots. Other models stay as they are."""
    if model.config.moe.router == "anyexperts" and _routers(model)[0].cap_scope == "batch":
        set_cap_scope(model, "token")


def set_experts_per_token(model: PreTrainedModel, number: float) -> None:
    """Gives each token another number of experts: with AnyExperts routers a budget, else a whole number of slots.

    Raises:
        ValueError: the routers cannot choose so many, or choose a number of their own.
    """
    if any(isinstance(block.router, AnyExpertsRouter) for block in model.moe_blocks.values()):
        set_budget(model, number)
        return
    if number != int(number):
        raise ValueError(f"{number:g} experts per token: router '{model.config.moe.router}' chooses a whole number.")
    moe = replace(model.config.moe, num_experts_per_tok=int(number))
    for block in model.moe_blocks.values():
        if type(block.router).route is not Router.route:
            raise ValueError(f"router '{moe.router}' does not choose a number of experts that can be set.")
        block.router.check(moe.num_experts_per_tok, moe.gate)
    for block in model.moe_blocks.values():
        block.moe = moe
    model.config.evomoe = asdict(moe)


def real_experts_per_token(model: PreTrainedModel, run: Callable[[PreTrainedModel], Any]) -> float:
    """Mean number of real experts of a token in an MoE layer, padding left out, over the passes that ``run`` makes."""
    with record_routing(model, max_tokens=1) as recording:
        run(model)
    return mean_real_experts(model, recording)


def mean_real_experts(model: PreTrainedModel, recording: RoutingRecording) -> float:
    """Mean number of real experts of a token in an MoE layer, over the passes that were recorded."""
    E = model.config.moe.num_experts
    real = sum(int(counts_ME[:, :E].sum()) for counts_ME in recording.counts.values())
    return real / (recording.tokens * len(recording.counts))


def calibrate(
    model: PreTrainedModel, real: float, run: Callable[[PreTrainedModel], Any], tolerance: float = 0.02, tries: int = 12
) -> float:
    """Sets the budget under which a token has ``real`` real experts on average, measured over the passes that ``run`` makes.

    Args:
        run: runs the model, in evaluation mode, over what it is to be calibrated on, such as a few batches of questions.
        tolerance: how far from ``real`` the mean may be.
        tries: how often ``run`` is called, at most.

    Returns:
        The mean that was measured, of all that were tried the nearest: slots are whole, so that not every mean can be had. A
        ``RouterWarning`` says so if it is farther away than a twentieth.

    Raises:
        ValueError: the model has no AnyExperts router.
    """
    router, moe = _routers(model)[0], model.config.moe
    before = router.target(moe.num_experts_per_tok)
    measured = {before: real_experts_per_token(model, run)}
    least, most = ((1 - router.virtual_share) * slots for slots in (1.0, router.num_experts))
    while (
        len(measured) < tries
        and most - least > tolerance / 10
        and all(abs(mean - real) > tolerance for mean in measured.values())
    ):
        budget = (least + most) / 2
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RouterWarning)  # of budgets that are only tried
                set_budget(model, budget)
        except ValueError:  # beyond what the router can choose
            least, most = (budget, most) if budget < before else (least, budget)
            continue
        measured[budget] = real_experts_per_token(model, run)
        least, most = (least, budget) if measured[budget] > real else (budget, most)
    best = min(measured, key=lambda budget: abs(measured[budget] - real))
    set_budget(model, best)
    if abs(measured[best] - real) > real / 20:
        warnings.warn(
            f"{real:g} real experts per token cannot be had, {measured[best]:.2f} is the nearest mean: a range as wide as this one must lie "
            f"between 1 slot and as many as there are real experts ({router.num_experts}).",
            RouterWarning,
            stacklevel=2,
        )
    return measured[best]


def _routers(model: PreTrainedModel) -> list[AnyExpertsRouter]:
    found = [b.router for b in getattr(model, "moe_blocks", {}).values() if isinstance(b.router, AnyExpertsRouter)]
    if not found:
        raise ValueError(f"{type(model).__name__} has no router 'anyexperts', so that its budget cannot be moved.")
    return found
