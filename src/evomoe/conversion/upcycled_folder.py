"""A dense model's folder in, a sparse model's folder out; the sparse model is never whole in memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers.modeling_utils import PreTrainedModel

from evomoe.conversion.copied_processor import copied_processor
from evomoe.conversion.upcycling import Conversion
from evomoe.model.accounting import count_parameters, large_router, parameter_facts
from evomoe.model.loading import empty_model, load_model
from evomoe.model.model_card import CARD, model_card
from evomoe.model.remote_code import set_remote_code, write_remote_module
from evomoe.model.structure import image_token_ids, module_name, named
from evomoe.recipe.placement import parse_placement
from evomoe.support import hf
from evomoe.support.files import ShardWriter, new_folder, write_text
from evomoe.support.text import readable

SMALL = 100 * 10**6
"""Bytes up to which MoE layers share a shard when a folder is converted; larger ones get a shard each."""


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
        remote_code: also write the module that imports evomoe for processes that have not, see ``evomoe.model.remote_code``.

    Returns:
        What was written, and a warning if the routers are large for this model.

    Raises:
        ValueError: ``out`` exists, or ``upcycle`` refused.
    """
    with new_folder(out) as folder:
        model = load_model(dense, dtype, trust_remote_code)
        before = sum(p.numel() for p in model.parameters())
        placement = parse_placement(moe_layers) if isinstance(moe_layers, str) else moe_layers
        with named(dense):
            conversion = Conversion(model, placement, expert_init, init_options, seed, moe_fields)
        set_remote_code(conversion.config, remote_code)
        sparse, moe = empty_model(conversion.config), conversion.moe
        counts, warning = count_parameters(sparse), large_router(sparse)
        card = model_card(conversion.config, conversion.sparse_class.__name__, dense, parameter_facts(counts))
        # What is small comes first: what is wrong with it is known before the weights are written.
        copied_processor(dense, trust_remote_code).save_pretrained(folder)
        write_text(folder / CARD, card)
        if remote_code:
            write_remote_module(folder)
        _write(model, conversion, folder)
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
    config = conversion.config
    config.architectures, config.dtype = [conversion.sparse_class.__name__], model.dtype
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
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
