"""A router of your own, tried in a small model: does it keep what training, scoring and serving rely on?

T tokens, E experts.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from evomoe.conversion.upcycling import upcycle
from evomoe.model.modality import Modality
from evomoe.model.routers import ROUTERS, Router
from evomoe.model.routers.checked_logits import try_router
from evomoe.model.sparse_model import SparseModel
from evomoe.support.device import moved
from evomoe.support.errors import OptionError, foreign, no_such, place
from evomoe.support.rows import check_row

_TOKENS = 12


def check_router(
    name: str, num_experts: int = 4, num_experts_per_tok: int = 1, gate: str = "straight_through", **router_options: Any
) -> None:
    """Tries a router in a random model of two layers, in seconds; it says nothing if the router keeps all that is asked.

    Asked is what the pages of this project promise of any router: finite weights; a choice for each token that hangs on that token
    alone; the same choice after saving and loading; float32 scores of a model in bfloat16; a gradient for what it has to learn.

    Args:
        name: a row of ``ROUTERS``.
        num_experts: E.
        num_experts_per_tok: K.
        gate: a row of ``GATES``.
        router_options: of the router.

    Raises:
        OptionError: there is no such router, an option is wrong, or it breaks a promise: the message says which.
    """
    if name not in ROUTERS:
        raise OptionError("name", f"{no_such(name, ROUTERS, 'router')}, or add a row to `ROUTERS`.")
    check_row("router", name, ROUTERS, derived_from=Router)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, vocab_size=64, tie_word_embeddings=False
    )
    moe: dict[str, Any] = {"num_experts": num_experts, "num_experts_per_tok": num_experts_per_tok, "gate": gate}
    moe |= {"router": name, "router_options": router_options, "moe_layers": "all", "expert_init": "noise"}
    with torch.random.fork_rng(devices=[]), _without_bars():
        torch.manual_seed(0)
        model = upcycle(LlamaForCausalLM(config), **moe)
        try_router(ROUTERS[name](config.hidden_size, num_experts, **router_options), num_experts_per_tok, gate, name)
        for promise, kept in _PROMISES.items():
            with _told(name, promise):
                kept(model)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Transformers draws a bar for every file that it reads or writes; within the block it draws none."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _told(name: str, promise: str) -> Iterator[None]:
    """Errors within the block say which promise the router ``name`` breaks."""
    try:
        yield
    except Exception as error:  # of code that anybody may have written
        raise OptionError("router", f"'{name}' breaks a promise: {promise}. {foreign(error)}{place(error)}") from error


def _router(model: SparseModel) -> Router:
    return model.moe_blocks[0].router


def _weights(model: SparseModel, x_TD: Tensor, is_image_T: Tensor) -> Tensor:
    """What each expert's output is multiplied by, (T, E), 0 for those that were not chosen; virtual experts included."""
    moe = model.config.moe
    routing = _router(model).route(x_TD, Modality.of(is_image_T[None], None), moe.num_experts_per_tok, moe.gate)
    width = max(int(routing.index_TK.max()) + 1, routing.probs_TE.shape[1] + 1)
    return torch.zeros(len(x_TD), width).scatter_add(1, routing.index_TK, routing.weight_TK.float())[:, : width - 1]


def _check_same(found_TE: Tensor, expected_TE: Tensor) -> None:
    others = int((~torch.isclose(found_TE, expected_TE, atol=1e-4, rtol=1e-4)).any(-1).sum())
    if others:
        raise ValueError(f"Of {len(found_TE)} tokens {others} got other experts or weights.")


def _tokens(model: SparseModel) -> tuple[Tensor, Tensor]:
    """Random tokens, every third of an image."""
    return torch.randn(_TOKENS, model.config.hidden_size), torch.arange(_TOKENS) % 3 == 0


@torch.no_grad()
def _each_by_itself(model: SparseModel) -> None:
    model.eval()
    x_TD, is_image_T = _tokens(model)
    alone = [_weights(model, x_TD[t : t + 1], is_image_T[t : t + 1]) for t in range(_TOKENS)]
    _check_same(torch.cat(alone), _weights(model, x_TD, is_image_T))


@torch.no_grad()
def _comes_back(model: SparseModel) -> None:
    x_TD, is_image_T = _tokens(model)
    with tempfile.TemporaryDirectory() as folder:
        model.eval().save_pretrained(folder)
        again: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
        try:
            _check_same(_weights(again, x_TD, is_image_T), _weights(model, x_TD, is_image_T))
        except Exception as error:
            if not (lost := _loose_tensors(_router(again))):
                raise
            remedy = f"Tensors that are neither parameters nor buffers: {', '.join(lost)}. Hand them to register_buffer."
            raise ValueError(f"{foreign(error)} {remedy}") from error


def _loose_tensors(router: Router) -> list[str]:
    """The attributes that hold a tensor which no checkpoint holds."""
    return [
        f"{part}.{name}" if part else name
        for part, module in router.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor)
    ]


@torch.no_grad()
def _in_half_precision(model: SparseModel) -> None:
    moved(model.eval(), torch.bfloat16)
    x_TD, is_image_T = _tokens(model)
    _weights(model, x_TD.bfloat16(), is_image_T)
    model.float()


def _learns(model: SparseModel) -> None:
    moe = model.config.moe
    parameters = dict(_router(model).named_parameters())
    if not parameters or (moe.num_experts_per_tok == 1 and moe.gate == "normalised"):
        return
    ids_BS = torch.arange(_TOKENS)[None]
    modality = Modality.of(ids_BS % 3 == 0, None)
    forward: Any = model.train()
    forward(input_ids=ids_BS, labels=ids_BS, modality=modality).loss.backward()
    without = [name for name, parameter in parameters.items() if parameter.grad is None]
    odd = [name for name, parameter in parameters.items() if parameter.grad is not None and not parameter.grad.isfinite().all()]
    if len(without) == len(parameters) or odd:
        raise ValueError(
            f"Without a gradient: {', '.join(without) or 'none'}; with one that is not finite: {', '.join(odd) or 'none'}."
        )


_PROMISES: dict[str, Callable[[SparseModel], None]] = {
    "what a token is given hangs on that token alone, or answers would depend on what they are batched with": _each_by_itself,
    "saved and loaded again it chooses as before, or a trained model is lost": _comes_back,
    "its scores are float32 whatever the model's precision": _in_half_precision,
    "its parameters learn from the loss, or Stage III trains nothing": _learns,
}
