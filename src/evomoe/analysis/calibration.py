"""How many real experts a token has, measured, and the budget under which it has as many as wanted."""

import warnings
from collections.abc import Callable
from typing import Any

from evomoe.analysis.recording import RoutingRecording, record_routing
from evomoe.model.budget import first_router, set_budget
from evomoe.model.sparse_model import SparseModel
from evomoe.recipe.row_options import RouterWarning
from evomoe.support.errors import OptionError


def real_experts_per_token(model: SparseModel, run: Callable[[SparseModel], Any]) -> float:
    """Mean number of real experts of a token in an MoE layer, padding left out, over the passes that ``run`` makes."""
    with record_routing(model, max_tokens=1) as recording:
        run(model)
    return mean_real_experts(model, recording)


def mean_real_experts(model: SparseModel, recording: RoutingRecording) -> float:
    """Mean number of real experts of a token in an MoE layer, over the passes that were recorded."""
    E = model.config.moe.num_experts
    real = sum(int(counts_ME[:, :E].sum()) for counts_ME in recording.counts.values())
    return real / (recording.tokens * len(recording.counts))


def calibrate(
    model: SparseModel, real: float, run: Callable[[SparseModel], Any], tolerance: float = 0.02, tries: int = 12
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
        OptionError: the model's routers have no budget.
    """
    moe = model.config.moe
    budgets = first_router(model).budgets(moe.num_experts_per_tok)
    if budgets is None:
        raise OptionError("router", f"'{moe.router}' has no budget that could be moved.")
    before, least, most = budgets.now, budgets.least, budgets.most
    measured = {before: real_experts_per_token(model, run)}
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
            f"between 1 slot and as many as there are real experts ({moe.num_experts}).",
            RouterWarning,
            stacklevel=2,
        )
    return measured[best]
