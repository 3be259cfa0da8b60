"""Dense model in, sparse model out, for any VLM family."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from evomoe.accounting import count_parameters, readable
from evomoe.configuration import MoEConfig
from evomoe.expert_init import INITS
from evomoe.families import sparse_config
from evomoe.files import new_folder
from evomoe.loading import load_model, load_processor
from evomoe.modeling import EvoMoEBlock, EvoMoEMixin, model_class
from evomoe.placement import parse_placement
from evomoe.structure import UnsupportedModelError, decoder_layers, ffn_names, text_config


def upcycle(
    model: PreTrainedModel,
    *,
    moe_layers: str | Sequence[int] = "alternating",
    expert_init: str = "replicate",
    init_options: dict[str, Any] | None = None,
    seed: int = 0,
    **moe_fields: Any,
) -> PreTrainedModel:
    """Turns a dense model into a mixture of experts.

    The model is converted in place, so that memory grows by the new experts only, and returned: ``model`` itself is the
    sparse model afterwards. If anything is wrong with the request, the model is left as it was.

    Args:
        model: a dense model from transformers.
        moe_layers: which decoder layers become sparse, see ``evomoe.placement``.
        expert_init: a name of ``INITS``.
        init_options: keyword arguments of the initialiser, e.g. ``{"std": 1e-2}`` for "noise" or
            ``{"experts": "evolved_experts.safetensors"}`` for "evolved".
        seed: draws the router's weights and the initialiser's noise.
        moe_fields: further fields of ``MoEConfig``: num_experts, num_experts_per_tok, router, router_options, gate,
            shared_expert, expert_dropout, aux_losses, aux_reduction.

    Returns:
        The same object, now of class ``EvoMoE<Base>``.

    Raises:
        UnsupportedModelError: the model is sparse already, or has no FFN that the rule can find.
        ValueError: an option is wrong; the message names it.
    """
    if isinstance(model, EvoMoEMixin):
        raise UnsupportedModelError("The model is an EvoMoE model already; start from the dense model.")
    names, layers = ffn_names(model), decoder_layers(model)
    moe = MoEConfig.for_model(model.config, moe_layers, expert_init=expert_init, **moe_fields)
    config, sparse_class = sparse_config(model.config, moe), model_class(type(model))
    if sparse_class.config_class is not type(config):
        raise UnsupportedModelError(
            f"{type(model).__name__} is not the class that transformers loads for image-text-to-text or causal language "
            "modelling, so a converted model could not be loaded again."
        )
    generator, hidden_size = torch.Generator("cpu").manual_seed(seed), text_config(config).hidden_size
    blocks: dict[int, EvoMoEBlock] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for index in moe.moe_layers:
            ffn = layers[index].get_submodule(names[index])
            try:
                experts = INITS[expert_init](ffn, moe.num_experts, index, generator, **(init_options or {}))
            except TypeError as error:
                raise ValueError(f"init_options: '{expert_init}' does not take {init_options} ({error}).") from error
            if moe.shared_expert:
                experts.append(INITS["replicate"](ffn, 2, index, generator)[1])
            weight = next(ffn.parameters())
            blocks[index] = EvoMoEBlock(index, moe, hidden_size, experts).to(weight.device, weight.dtype).train(ffn.training)
    for index, block in blocks.items():
        layers[index].set_submodule(names[index], block)
    _swap_config(model, model.config, config)
    model.__class__ = sparse_class
    return model


def _swap_config(model: nn.Module, dense, sparse) -> None:
    """Hands the sparse configuration to every submodule that holds the dense one."""
    for module in model.modules():
        if getattr(module, "config", None) is dense:
            module.config = sparse


def upcycle_folder(dense: str, out: str | Path, *, dtype: str = "auto", trust_remote_code: bool = False, **options: Any) -> str:
    """Loads a dense model from a folder or the hub, converts it and writes model and processor to ``out``.

    Args:
        dense: folder or hub name.
        out: folder to write.
        dtype: precision of the loaded weights.
        trust_remote_code: run code from the model's repository.
        options: as ``upcycle`` takes them.

    Returns:
        One line that says what was written.

    Raises:
        ValueError: ``out`` exists, or ``upcycle`` refused.
    """
    with new_folder(out) as folder:
        model = load_model(dense, dtype, trust_remote_code)
        before = sum(p.numel() for p in model.parameters())
        placement = options.pop("moe_layers", "alternating")
        model = upcycle(model, moe_layers=parse_placement(placement) if isinstance(placement, str) else placement, **options)
        model.save_pretrained(folder)
        load_processor(dense, trust_remote_code).save_pretrained(folder)
    counts = count_parameters(model)
    moe = model.config.moe
    return (
        f"{out}: {type(model).__name__}, {moe.num_experts} experts in layers {', '.join(map(str, moe.moe_layers))}, router "
        f"{moe.router}; {readable(before)} dense parameters became {readable(counts.total)}, of which "
        f"{readable(counts.activated)} run per token."
    )
