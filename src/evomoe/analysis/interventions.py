"""Running a sparse model with other routers than its own, and putting its own back.

Implements: Table 3 (each expert alone), Table 10 (shuffles).
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from evomoe.analysis.calibration import calibrate
from evomoe.analysis.intervention import Intervention
from evomoe.model.budget import first_router, moe_restored, set_experts_per_token
from evomoe.model.routers import Router
from evomoe.model.routers.fixed import FixedRouter
from evomoe.model.routers.shuffled import ShuffledRouter
from evomoe.model.sparse_model import SparseModel, is_sparse
from evomoe.support.errors import OptionError

SHUFFLES = 8
"""As many as Table 10 has."""

Score = TypeVar("Score")


@contextmanager
def replaced_routers(model: SparseModel, replace: Callable[[Router, int], Router]) -> Iterator[SparseModel]:
    """Within the block, every MoE layer uses ``replace(its router, layer index)``."""
    own = {layer: block.router for layer, block in model.moe_blocks.items()}
    try:
        for layer, block in model.moe_blocks.items():
            block.router = replace(own[layer], layer).train(own[layer].training)
        yield model
    finally:
        for layer, block in model.moe_blocks.items():
            block.router = own[layer]


def only_expert(model: SparseModel, expert: int) -> AbstractContextManager[SparseModel]:
    """Within the block, every token of every MoE layer goes to one expert (0 is the paper's expert 1), with weight 1."""
    return replaced_routers(model, lambda router, layer: FixedRouter(router.hidden_size, router.num_experts, expert=expert))


def shuffled_routers(model: SparseModel, seed: int) -> AbstractContextManager[SparseModel]:
    """Within the block, and in evaluation mode, every MoE layer's logits reach the experts in a permuted order."""
    return replaced_routers(
        model, lambda router, layer: ShuffledRouter(router.hidden_size, router.num_experts, router, seed=seed * 1009 + layer)
    )


@contextmanager
def shuffled_importance(model: SparseModel, seed: int) -> Iterator[SparseModel]:
    """Within the block, each router gives every token the importance of another token of the same pass, drawn at random.

    The mean number of experts is the same; if the scores are too, it does not matter which tokens get many.

    Raises:
        ValueError: the model's routers estimate no importance.
    """
    generator = torch.Generator("cpu").manual_seed(seed)

    def shuffle(module: nn.Module, args: tuple, importance_T: Tensor) -> Tensor:
        return importance_T[torch.randperm(len(importance_T), generator=generator).to(importance_T.device)]

    networks = [network for block in model.moe_blocks.values() if (network := block.router.importance_network) is not None]
    if not networks:
        raise ValueError(f"{type(model).__name__} has no routers that estimate an importance, which could be shuffled.")
    handles = [network.register_forward_hook(shuffle) for network in networks]
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def applied(
    model: PreTrainedModel, intervention: Intervention, run: Callable[[SparseModel], Any] | None = None
) -> Iterator[PreTrainedModel]:
    """Within the block, the model's routers are as the intervention wants them; one that changes nothing suits a dense model, too.

    Args:
        run: what the number of experts per token is measured over, where routers have a budget; see ``calibrate``.

    Raises:
        ValueError: the model's routers cannot be changed so, or have a budget and there is no ``run``; or it has no routers.
    """
    if not intervention.changes():
        yield model
        return
    if not is_sparse(model):
        raise OptionError("model", f"{type(model).__name__} is not an EvoMoE model, so it has no routers that could be changed.")
    with ExitStack() as stack:
        if intervention.experts_per_token is not None:
            stack.enter_context(moe_restored(model))
            _ask_for_experts(model, intervention.experts_per_token, run)
        if intervention.expert is not None:
            stack.enter_context(only_expert(model, intervention.expert))
        if intervention.shuffle is not None:
            stack.enter_context(shuffled_routers(model, intervention.shuffle))
        if intervention.shuffle_importance is not None:
            stack.enter_context(shuffled_importance(model, intervention.shuffle_importance))
        yield model


def _ask_for_experts(model: SparseModel, number: float, run: Callable[[SparseModel], Any] | None) -> None:
    """Of routers with a budget ``number`` is the mean that is measured, of others the number of slots."""
    if first_router(model).budgets(model.config.moe.num_experts_per_tok) is None:
        set_experts_per_token(model, number)
    elif run is None:
        raise OptionError("run", "the routers have a budget, so name what the number of experts per token is measured over.")
    else:
        calibrate(model, number, run)


def shuffle_test(
    model: SparseModel, score: Callable[[SparseModel], Score], shuffles: int = SHUFFLES
) -> tuple[Score, list[Score]]:
    """Scores a sparse model with its own routers and with each of several shuffles of them.

    If it does not matter which expert a token gets, the scores are alike. Two experts have one shuffle only, so that with
    E = 2 all shuffles are the same model.

    Args:
        score: of a model in evaluation mode, whatever a score is.
        shuffles: how many, with seeds 1, 2, 3 ...

    Returns:
        The own score and those of the shuffles.
    """
    own, shuffled = score(model), []
    for seed in range(1, shuffles + 1):
        with shuffled_routers(model, seed):
            shuffled.append(score(model))
    return own, shuffled


def each_alone(model: SparseModel, score: Callable[[SparseModel], Score]) -> list[Score]:
    """Scores every expert of a sparse model alone, in order: all tokens of all MoE layers go to it."""
    scores = []
    for expert in range(model.config.moe.num_experts):
        with only_expert(model, expert):
            scores.append(score(model))
    return scores
