"""AnyExperts for models that transformers has as mixtures of experts: their experts and scores stay, their routers are replaced.

T tokens, D hidden, E experts, K experts per token.
"""

from collections.abc import Iterator
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from evomoe.conversion.copied_processor import copied_processor
from evomoe.conversion.upcycling import become, sparse_form
from evomoe.model.accounting import count_parameters, parameter_facts
from evomoe.model.attached_block import AttachedBlock
from evomoe.model.configuration import MoEConfig
from evomoe.model.loading import load_model
from evomoe.model.modality import Modality
from evomoe.model.model_card import CARD, model_card
from evomoe.model.routers.anyexperts import AnyExpertsRouter
from evomoe.model.routing import GATES
from evomoe.model.sparse_model import SparseModel, is_sparse
from evomoe.model.structure import UnsupportedModelError, check_is_model, decoder_layers, find_sparse_ffn, named, text_config
from evomoe.recipe.anyexperts_options import AnyExpertsOptions
from evomoe.recipe.options import AttachOptions
from evomoe.recipe.row_options import read_options
from evomoe.support.errors import OptionError, out_of
from evomoe.support.files import new_folder, write_text
from evomoe.support.needs import needs_of
from evomoe.support.text import counted, readable


@out_of("router_options")  # which are arguments of their own here
def attach(
    model: PreTrainedModel,
    *,
    k_min: float | None = None,
    k_max: float | None = None,
    gate: str = "",
    aux_losses: dict[str, float] | None = None,
    seed: int = 0,
    **router_options: Any,
) -> SparseModel:
    """Gives a model that is sparse already (Mixtral, Qwen-MoE, OLMoE, DeepSeek and so on) AnyExperts routers, which start from its own.

    Experts, shared experts and router weights stay. How the model's router scores is measured, layer by layer, and one that AnyExperts
    cannot imitate is refused: with ``k_min`` and ``k_max`` its own number of experts, ``num_virtual=0``, ``alpha_f=0`` and
    ``lam=0`` the model computes what it did. Virtual experts start from the mean of the real ones' scores.

    The model is changed in place, and left as it was if anything is wrong.

    Args:
        model: from transformers, image-text-to-text or causal language model.
        k_min: fewest slots of a token. By default a token of importance 1/2 that uses its cap has as many real experts as
            before. It has more as long as virtual experts are not chosen: see ``calibrate``.
        k_max: most slots of a token; give both, or neither.
        gate: what multiplies an expert's output, a name of ``GATES``; by default what the model does, but "straight_through" in place of
            "normalised" where virtual experts are to learn: the values are the same, and importance has a gradient through ``lam``.
        aux_losses: coefficient of each auxiliary loss; by default balance 0.01 and importance 0.001. They take the place of the
            model's own balance loss.
        seed: draws what is new in the routers.
        router_options: further options of router "anyexperts".

    Returns:
        The same object, now of class ``EvoMoE<Base>``.

    Raises:
        UnsupportedModelError: the model has no sparse layers, or its routers do something else.
        ValueError: an option is wrong; the message names it.
    """
    check_is_model(model)
    if is_sparse(model):
        raise UnsupportedModelError("The model has this library's routers already; start from the model of transformers.")
    name, D = type(model).__name__, text_config(model.config).hidden_size
    own: dict[int, Any] = {}
    for index, layer in enumerate(decoder_layers(model)):
        if (found := find_sparse_ffn(layer, D)) is not None:
            own[index] = layer.get_submodule(".".join(found))
    if not own:
        if (expert := next((n for n, _ in model.get_decoder().named_modules() if "expert" in n.rpartition(".")[2]), "")) == "":
            raise UnsupportedModelError(
                f"{name} has no sparse layers to attach AnyExperts to; `evomoe upcycle` converts a dense model."
            )
        raise UnsupportedModelError(f"{name} is sparse, but built in a way that attach does not know ({expert}).")
    for index in own:
        _check_block(decoder_layers(model)[index], f"{name}, layer {index}", D)
    with torch.random.fork_rng(devices=[]):
        scored = {index: _scoring(router, f"{name}, layer {index}") for index, router in own.items()}
    first = next(iter(scored.values()))
    if any(options != first for options in scored.values()):
        raise UnsupportedModelError(f"{name}: its layers' routers differ from each other in how they score.")
    own_gate, top_k, how = first
    options = {"k_min": k_min, "k_max": k_max} if k_min is not None or k_max is not None else {}
    options |= how | router_options
    num_experts = next(iter(own.values())).weight.shape[0]
    AnyExpertsRouter.read(options, num_experts, AttachOptions.router)
    with torch.device("meta"):
        new = AnyExpertsRouter(D, num_experts, **options)
    if needs_of(GATES[own_gate]) and len(new.virtual) and new.options.lam:
        own_gate = "straight_through"
    moe = MoEConfig(
        num_experts=num_experts,
        num_experts_per_tok=top_k,
        router=AttachOptions.router,
        router_options=options,
        gate=gate or own_gate,
        aux_losses=AttachOptions().aux_losses if aux_losses is None else aux_losses,
        base_model_type=model.config.model_type,
        moe_layers=list(own),
        attached=True,
    )
    new.check(top_k, moe.gate)
    config, sparse_class = sparse_form(model, moe)
    for part in {id(c): c for c in (config, text_config(config))}.values():
        part.output_router_logits = False  # the model's own balance loss would ask the routers that are gone
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for index, router in own.items():
            block = AttachedBlock.put_into(decoder_layers(model)[index], index, moe, D)
            assert isinstance(block.router, AnyExpertsRouter)
            _start_from(block.router, router)
            block.router.to(router.weight.device, router.weight.dtype).train(router.training)
    return become(model, config, sparse_class)


def attach_folder(
    source: str,
    out: str | Path,
    moe: AttachOptions,
    *,
    dtype: str = "auto",
    seed: int = 0,
    trust_remote_code: bool = False,
    remote_code: bool = False,
) -> str:
    """Loads a model that is sparse already from a folder or the hub, attaches AnyExperts, writes model and processor to ``out``.

    Args:
        source: folder or hub name.
        out: folder to write.
        moe: the new routers.
        dtype: precision of the loaded weights.
        seed: draws what is new in the routers.
        trust_remote_code: run code from the model's repository.
        remote_code: also write the module that imports evomoe for processes that have not, see ``evomoe.model.remote_code``.

    Returns:
        What was written.

    Raises:
        ValueError: ``out`` exists, or ``attach`` refused.
    """
    read_options(AnyExpertsOptions, moe.router_options, f"router '{AttachOptions.router}'")
    ends = {name: value for name, value in (("k_min", moe.k_min), ("k_max", moe.k_max)) if value is not None}
    if twice := ends.keys() & moe.router_options.keys():
        raise OptionError(min(twice), f"it is also given as `router_options.{min(twice)}`; leave out one.")
    options = ends | moe.router_options
    with new_folder(out) as folder:
        sparse = load_model(source, dtype, trust_remote_code)
        try:
            with named(source):
                model = attach(sparse, gate=moe.gate, aux_losses=moe.aux_losses, seed=seed, **options)
        except OptionError as error:
            if error.option not in moe.router_options:
                raise
            raise OptionError(f"router_options.{error.option}", error.message) from error
        own, counts = model.config.moe, count_parameters(model)
        copied_processor(source, trust_remote_code).save_pretrained(folder)
        write_text(folder / CARD, model_card(model.config, type(model).__name__, source, parameter_facts(counts)))
        model.save_pretrained(folder, remote_code=remote_code)
    router = next(iter(model.moe_blocks.values())).router
    assert isinstance(router, AnyExpertsRouter)
    low, high = router.slots(own.num_experts_per_tok)
    return (
        f"{out}: {type(model).__name__}, {own.num_experts} experts and {counted(len(router.virtual), 'virtual one')} in layers "
        f"{', '.join(map(str, own.moe_layers))}; {low:g} to {high:g} slots per token, where it had {own.num_experts_per_tok} experts. "
        f"{readable(counts.router)} of its {readable(counts.total)} parameters are the routers'."
    )


@torch.no_grad()
def _start_from(router: AnyExpertsRouter, own: Any) -> None:
    """The model's own scores for the real experts; for the virtual ones their mean, and a little chance to tell them apart."""
    weight_RD, R = own.weight.float(), router.num_experts
    router.gate.weight[:R] = weight_RD
    virtual_VD = router.gate.weight[R:]
    virtual_VD.copy_(weight_RD.mean(0) + 0.01 * weight_RD.std() * torch.randn(virtual_VD.shape).to(weight_RD.device))
    if router.bias is not None:
        bias_R = getattr(own, "e_score_correction_bias", torch.zeros(R)).float()
        router.bias.value_N[:R], router.bias.value_N[R:] = bias_R, bias_R.mean()


@torch.no_grad()
def _check_block(layer: nn.Module, where: str, D: int) -> None:
    """Makes sure that a block's experts are given what its router is given, and what the router says.

    Raises:
        UnsupportedModelError: the block changes one of them on the way.
    """
    found = find_sparse_ffn(layer, D)
    assert found is not None
    block = layer.get_submodule(found[0])
    router, experts = getattr(block, found[1]), block.get_submodule("experts")
    seen: dict[str, Any] = {}
    handles = [
        router.register_forward_hook(lambda module, args, output: seen.update(router=args[0], chosen=output)),
        experts.register_forward_pre_hook(lambda module, args: seen.update(experts=args)),
    ]
    weight = router.weight
    x_BSD = torch.randn(1, 16, D, generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
    try:
        block(x_BSD)
        _, weight_TK, index_TK = seen["chosen"]
        given = (x_BSD.flatten(0, 1), index_TK, weight_TK)
        same = all(torch.equal(a.flatten(0, -2), b) for a, b in zip(seen["experts"], given, strict=True))
        same = same and torch.equal(seen["router"].flatten(0, -2), given[0])
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise UnsupportedModelError(f"{where}: {type(block).__name__} is built in a way that attach does not know.") from error
    finally:
        for handle in handles:
            handle.remove()
    if not same:
        raise UnsupportedModelError(
            f"{where}: {type(block).__name__} gives its experts something else than it gives its router. No router of this library can "
            "take its place."
        )


@torch.no_grad()
def _scoring(own: Any, where: str) -> tuple[str, int, dict[str, Any]]:
    """How a router of transformers scores: gate, experts per token, and the options of router "anyexperts" under which it does the same.

    Read off what it does to random tokens, for the classes name and store it in their own ways.

    Raises:
        UnsupportedModelError: none of these does.
    """
    router = deepcopy(own).float().eval()
    weight_ED = router.weight
    E, D = weight_ED.shape
    spread = weight_ED.float().std().clamp(min=1e-6) * D**0.5
    x_TD = torch.randn(256, D, generator=torch.Generator().manual_seed(0)).to(weight_ED.device) * (2 / spread)
    try:
        _, weight_TK, index_TK = router(x_TD)
        wanted_TE = torch.zeros(len(x_TD), E, device=x_TD.device).scatter(1, index_TK, weight_TK.float())
    except (RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedModelError(f"{where}: {type(own).__name__} is built in a way that attach does not know.") from error
    top_k, is_text = index_TK.shape[1], Modality.of(torch.zeros(1, len(x_TD), dtype=torch.bool), None)
    for gate, options in _readings(router):
        imitation = AnyExpertsRouter(D, E, k_min=top_k, k_max=top_k, num_virtual=0, alpha_f=0.0, lam=0.0, **options)
        _start_from(imitation.to(x_TD.device).eval(), router)
        routing = imitation.route(x_TD, is_text, top_k, gate)
        found_TE = torch.zeros_like(wanted_TE).scatter(1, routing.index_TK, routing.weight_TK)
        scale = _ratio(wanted_TE, found_TE)
        if torch.allclose(found_TE * scale, wanted_TE, rtol=1e-4, atol=1e-6):
            return gate, top_k, options | ({"output_scale": scale} if abs(scale - 1) > 1e-6 else {})
    raise UnsupportedModelError(f"{where}: {type(own).__name__} scores in a way that AnyExperts does not know.")


def _readings(router: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Ways in which a router may score, the plainest first."""
    groups, open_groups = (int(getattr(router, name, None) or 1) for name in ("num_group", "topk_group"))
    biased = {"biased": True} if getattr(router, "e_score_correction_bias", None) is not None else {}
    limited = (
        [{"groups": groups, "open_groups": open_groups, "group_best": best} for best in (1, 2)] if open_groups < groups else []
    )
    for scores, gate, limits in product(("softmax", "sigmoid"), ("probability", "normalised"), [{}, *limited]):
        yield gate, ({} if scores == "softmax" else {"scores": scores}) | limits | biased


def _ratio(wanted: Tensor, found: Tensor) -> float:
    """By how much the one is larger than the other, rounded to what a configuration would say."""
    return round((wanted.sum() / found.sum()).item(), 4)
