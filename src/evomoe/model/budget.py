"""How many experts a token gets, changed after training, and other options of routers that change no weight's shape."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from transformers.modeling_utils import PreTrainedModel

from evomoe.model.routers import Router
from evomoe.model.sparse_model import SparseModel, is_sparse
from evomoe.support.errors import OptionError, out_of


def set_budget(model: SparseModel, real: float) -> None:
    """Moves the range of slots of every router to where a token of importance 1/2 that uses its cap has ``real`` real experts.

    Nothing is trained, and the range keeps its width. The mean over tokens is another number, most often a larger one: slots and
    caps are whole numbers, importance varies, and a token need not use its cap. ``evomoe.analysis.calibration.calibrate`` finds
    the budget whose measured mean is the one wanted.

    Raises:
        OptionError: the routers have no budget, the range would begin below one slot or end above the number of experts.
    """
    with out_of("router_options"):
        set_router_options(model, budget=real)


def set_cap_scope(model: SparseModel, scope: str) -> None:
    """Changes what the largest share of virtual slots is a share of, in every router: "token", "batch" or "expectation".

    Raises:
        OptionError: the routers have no such cap, or there is no such scope.
    """
    with out_of("router_options"):
        set_router_options(model, cap_scope=scope)


def set_experts_per_token(model: SparseModel, number: float) -> None:
    """Gives each token another number of experts: of routers that have a budget that, else a whole number of slots.

    Raises:
        OptionError: the routers cannot choose so many, or choose a number of their own.
    """
    if not math.isfinite(number):
        raise OptionError("experts_per_token", f"{number} must be a finite number.")
    change_moe(model, first_router(model).for_experts_per_token(number))


def set_router_options(model: SparseModel, **options: Any) -> None:
    """Changes options of every router and of the configuration.

    Raises:
        OptionError: the routers have no such option, it cannot change after training, or its value is wrong.
    """
    change_moe(model, {"router_options": options})


def end_training(model: SparseModel) -> None:
    """Leaves the routers as they are to answer: what is for training alone ends."""
    if options := first_router(model).after_training():
        set_router_options(model, **options)


def change_moe(model: SparseModel, changes: dict[str, Any]) -> None:
    """Changes fields of the mixture that no weight depends on, in the configuration and in every MoE layer, or none at all.

    Args:
        changes: fields of ``MoEConfig``; of ``router_options`` those that change.

    Raises:
        OptionError: the routers refuse a value.
    """
    adjustable, options = first_router(model).adjustable, changes.get("router_options", {})
    before, blocks = model.config.moe, list(model.moe_blocks.values())
    for option in options:
        if option not in adjustable:
            raise OptionError("router", f"'{before.router}' has no '{option}' that can be changed after training.")
    moe = replace(before, **changes | {"router_options": before.router_options | options})
    kept = [block.router.options for block in blocks]
    try:
        for block in blocks:
            block.router.set_options(block.router.read(moe.router_options, moe.num_experts, moe.router))
            block.router.check(moe.num_experts_per_tok, moe.gate)
    except OptionError:
        for block, options in zip(blocks, kept, strict=True):
            block.router.set_options(options)
        raise
    for block in blocks:
        block.moe = moe
    model.config.evomoe = asdict(moe)


@contextmanager
def moe_restored(model: SparseModel) -> Iterator[SparseModel]:
    """After the block, the mixture and its routers' options are what they were before it, whatever ``change_moe`` did."""
    before = [(block, block.moe, block.router, block.router.options) for block in model.moe_blocks.values()]
    written = model.config.evomoe
    try:
        yield model
    finally:
        model.config.evomoe = written
        for block, moe, router, options in before:
            block.moe = moe
            router.set_options(options)


def first_router(model: PreTrainedModel) -> Router:
    """The router of the first MoE layer; all have the same options.

    Raises:
        OptionError: the model is not sparse.
    """
    if not is_sparse(model):
        raise OptionError("model", f"{type(model).__name__} is not an EvoMoE model, so it has no routers.")
    return next(iter(model.moe_blocks.values())).router
