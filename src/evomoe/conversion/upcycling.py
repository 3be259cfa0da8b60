"""Dense model in, sparse model out, for any VLM family."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from evomoe.conversion.expert_init import INITS, config_fields
from evomoe.model.accounting import count_parameters, large_router, parameter_facts
from evomoe.model.block import EvoMoEBlock
from evomoe.model.configuration import EvoMoEConfig, MoEConfig
from evomoe.model.experts import Experts
from evomoe.model.families import sparse_config
from evomoe.model.hub import CARD, model_card, set_remote_code, write_remote_module
from evomoe.model.loading import empty_model, load_model, load_processor
from evomoe.model.sparse_model import EvoMoEMixin, model_class
from evomoe.model.structure import (
    UnsupportedModelError,
    check_convertible,
    decoder_layers,
    image_token_ids,
    module_name,
    text_config,
)
from evomoe.recipe.placement import parse_placement
from evomoe.support import hf
from evomoe.support.files import ShardWriter, new_folder, write_text
from evomoe.support.text import readable

SMALL = 100 * 10**6
"""Bytes up to which MoE layers share a shard when a folder is converted; larger ones get a shard each."""


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
        moe_layers: which decoder layers become sparse, see ``evomoe.recipe.placement``.
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
    conversion = Conversion(model, moe_layers, expert_init, init_options, seed, moe_fields)
    blocks = list(conversion.blocks())  # all of them before any is put in: a refusal leaves the model as it was
    for block in blocks:
        conversion.layers[block.layer].set_submodule(conversion.names[block.layer], block)
    return become(model, conversion.config, conversion.sparse_class)


def become(model: PreTrainedModel, config: EvoMoEConfig, sparse_class: type[PreTrainedModel]) -> PreTrainedModel:
    """Hands the sparse configuration to every submodule that holds the dense one, and the class to the model."""
    dense = model.config
    for module in model.modules():
        if getattr(module, "config", None) is dense:
            module.config = config
    model.__class__ = sparse_class
    return model


def sparse_form(model: PreTrainedModel, moe: MoEConfig) -> tuple[EvoMoEConfig, type[PreTrainedModel]]:
    """The configuration and the class that a model is to have.

    Raises:
        UnsupportedModelError: transformers could not load it again.
    """
    config, sparse_class = sparse_config(model.config, moe), model_class(type(model))
    if sparse_class.config_class is not type(config):
        raise UnsupportedModelError(
            f"{type(model).__name__} is not the class that transformers loads for image-text-to-text or causal language "
            "modelling, so a converted model could not be loaded again."
        )
    return config, sparse_class


class Conversion:
    """What a dense model is to become; its MoE layers are made one at a time.

    Attributes:
        layers: the decoder layers.
        names: name of the FFN in each of them.
        config, sparse_class: of the sparse model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        placement: str | Sequence[int],
        expert_init: str,
        init_options: dict[str, Any] | None,
        seed: int,
        moe_fields: dict[str, Any],
    ) -> None:
        if isinstance(model, EvoMoEMixin):
            raise UnsupportedModelError("The model is an EvoMoE model already; start from the dense model.")
        self.names, self.layers = check_convertible(model), decoder_layers(model)
        made_by = config_fields(expert_init, moe_fields.get("num_experts", MoEConfig.num_experts))
        self.moe = MoEConfig.for_model(model.config, placement, **made_by, **moe_fields)
        self.config, self.sparse_class = sparse_form(model, self.moe)
        self.init_options, self.seed = init_options or {}, seed
        INITS[expert_init].read(self.init_options, expert_init)

    def blocks(self) -> Iterator[EvoMoEBlock]:
        """The MoE layers, in order; each is made when asked for and holds the dense FFN as its first expert.

        Routers draw from a stream of their own, which goes on from layer to layer whatever else draws in between: the weights
        are the same whether the layers are made at once or written one by one.
        """
        generator, routers = torch.Generator("cpu").manual_seed(self.seed), _RandomStream(self.seed)
        for index in self.moe.moe_layers:
            yield self._block(index, generator, routers)

    def _block(self, index: int, generator: torch.Generator, routers: "_RandomStream") -> EvoMoEBlock:
        ffn, moe = self.layers[index].get_submodule(self.names[index]), self.moe
        experts = INITS[moe.expert_init](ffn, moe.num_experts, index, generator, **self.init_options)
        shared = deepcopy(ffn) if moe.shared_expert else None
        with routers.drawing():
            block = EvoMoEBlock(index, moe, text_config(self.config).hidden_size, Experts(experts), shared)
        weight = next(experts[0].parameters())
        return block.to(weight.device, weight.dtype).train(experts[0].training)


class _RandomStream:
    """torch's global random numbers from a seed on, a block of code at a time; outside the blocks they are as they were."""

    def __init__(self, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.state = torch.get_rng_state()

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Within the block, torch draws from this stream."""
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.state)
            yield
            self.state = torch.get_rng_state()


def upcycle_folder(
    dense: str,
    out: str | Path,
    *,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    moe_layers: str | Sequence[int] = "alternating",
    expert_init: str = "replicate",
    init_options: dict[str, Any] | None = None,
    seed: int = 0,
    remote_code: bool = False,
    **moe_fields: Any,
) -> str:
    """Loads a dense model from a folder or the hub, converts it and writes model and processor to ``out``.

    The sparse model is never whole in memory: a layer's experts are made, written and forgotten before the next layer's.

    Args:
        dense: folder or hub name.
        out: folder to write.
        dtype: precision of the loaded weights.
        trust_remote_code: run code from the model's repository.
        moe_layers, expert_init, init_options, seed, moe_fields: as ``upcycle`` takes them.
        remote_code: also write the module that imports evomoe for processes that have not, see ``evomoe.model.hub``.

    Returns:
        What was written, and a warning if the routers are large for this model.

    Raises:
        ValueError: ``out`` exists, or ``upcycle`` refused.
    """
    with new_folder(out) as folder:
        model = load_model(dense, dtype, trust_remote_code)
        before = sum(p.numel() for p in model.parameters())
        conversion = Conversion(
            model,
            parse_placement(moe_layers) if isinstance(moe_layers, str) else moe_layers,
            expert_init,
            init_options,
            seed,
            moe_fields,
        )
        set_remote_code(conversion.config, remote_code)
        _write(model, conversion, folder)
        if remote_code:
            write_remote_module(folder)
        load_processor(dense, trust_remote_code).save_pretrained(folder)
        sparse, moe = empty_model(conversion.config), conversion.moe
        counts, warning = count_parameters(sparse), large_router(sparse)
        card = model_card(moe, conversion.sparse_class.__name__, dense, parameter_facts(counts))
        write_text(folder / CARD, card)
    return (
        f"{out}: {conversion.sparse_class.__name__}, {moe.num_experts} experts in layers {', '.join(map(str, moe.moe_layers))}, router "
        f"{moe.router}; {readable(before)} dense parameters became {readable(counts.total)}, of which "
        f"{readable(counts.activated)} run per token."
        + ("" if image_token_ids(conversion.config) else " It sees no pictures: all tokens are text to the router.")
        + (f" {warning}." if warning else "")
    )


def _write(model: PreTrainedModel, conversion: Conversion, folder: Path) -> None:
    """Writes what ``upcycle(model).save_pretrained(folder)`` would; of the dense model, only its MoE layers' FFNs are given up."""
    prefix = module_name(model, conversion.layers)
    ffns = {index: f"{prefix}.{index}.{conversion.names[index]}." for index in conversion.moe.moe_layers}
    tied = hf.names_not_saved(model)
    with ShardWriter(folder) as shards:
        for name, tensor in model.state_dict().items():
            if name not in tied and not name.startswith(tuple(ffns.values())):
                shards.add({name: tensor})
        shards.flush(SMALL)
        for block in conversion.blocks():
            shards.add({f"{ffns[block.layer]}{name}": tensor for name, tensor in block.state_dict().items()})
            shards.flush(SMALL)
            conversion.layers[block.layer].set_submodule(conversion.names[block.layer], nn.Identity())
            del block
    config = conversion.config
    config.architectures, config.dtype = [conversion.sparse_class.__name__], model.dtype
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
