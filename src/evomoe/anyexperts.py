"""How many experts a model with AnyExperts routers uses, moved and measured after training."""

from collections.abc import Callable
from typing import Any

from transformers.modeling_utils import PreTrainedModel

from evomoe.analysis.recording import record_routing
from evomoe.routers.anyexperts import AnyExpertsRouter


def set_budget(model: PreTrainedModel, real: float) -> None:
    """Moves the range of slots of every AnyExperts router to where a token has ``real`` real experts if its importance is 1/2.

    Nothing is trained, and the range keeps its width. The mean over tokens is another number, since importance varies and a
    cap is a whole number of slots: ``calibrate`` finds the budget whose measured mean is the one wanted.

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


def real_experts_per_token(model: PreTrainedModel, run: Callable[[PreTrainedModel], Any]) -> float:
    """Mean number of real experts of a token in an MoE layer, padding left out, over the passes that ``run`` makes."""
    with record_routing(model, max_tokens=1) as recording:
        run(model)
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
        The mean that was measured, of all that were tried the nearest: slots are whole, so that not every mean can be had.

    Raises:
        ValueError: the model has no AnyExperts router.
    """
    router = _routers(model)[0]
    low, high = router.slots(model.config.moe.num_experts_per_tok)
    least, most = ((1 - router.virtual_share) * slots for slots in (1.0, router.num_experts - (high - low) / 2))
    measured: dict[float, float] = {}
    while len(measured) < tries and not any(abs(mean - real) <= tolerance for mean in measured.values()):
        budget = (least + most) / 2
        set_budget(model, budget)
        measured[budget] = real_experts_per_token(model, run)
        least, most = (least, budget) if measured[budget] > real else (budget, most)
    best = min(measured, key=lambda budget: abs(measured[budget] - real))
    set_budget(model, best)
    return measured[best]


def _routers(model: PreTrainedModel) -> list[AnyExpertsRouter]:
    found = [b.router for b in getattr(model, "moe_blocks", {}).values() if isinstance(b.router, AnyExpertsRouter)]
    if not found:
        raise ValueError(f"{type(model).__name__} has no router 'anyexperts', so that its budget cannot be moved.")
    return found
