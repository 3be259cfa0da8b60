"""An EvoMoE becomes a model that needs no evomoe: a dense one of one expert, or one of transformers' own sparse families.

E experts, D hidden, F inner units of an expert.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from evomoe.conversion.copied_processor import copied_processor
from evomoe.model.block import EvoMoEBlock
from evomoe.model.configuration import MoEConfig
from evomoe.model.families import dense_config
from evomoe.model.loading import auto_model, load_model
from evomoe.model.model_card import CARD, exported_card
from evomoe.model.routers.fixed import FixedRouter
from evomoe.model.sparse_model import SparseModel, is_sparse
from evomoe.model.structure import image_token_ids, text_config
from evomoe.support.errors import OptionError
from evomoe.support.files import new_folder, write_text
from evomoe.support.processor import for_servers

Kind = Literal["dense", "native"]
TOLERANCE = 1e-4
"""By how much scores may differ from the sparse model's, in their standard deviations."""


@dataclass(frozen=True)
class Native:
    """A family of transformers that is sparse itself.

    Attributes:
        model_type: of its language model.
        in_every_layer: it has no dense layers.
        can_keep_probabilities: it can leave the weights of the chosen experts as they are; else their sum is always 1.
        shared_expert: it always has one.
    """

    model_type: str
    in_every_layer: bool = False
    can_keep_probabilities: bool = False
    shared_expert: bool = False


NATIVE: dict[str, Native] = {
    "llama": Native("mixtral", in_every_layer=True),
    "mistral": Native("mixtral", in_every_layer=True),
    "qwen2": Native("qwen2_moe", can_keep_probabilities=True, shared_expert=True),
    "qwen3": Native("qwen3_moe", can_keep_probabilities=True),
    "qwen3_vl_text": Native("qwen3_vl_moe_text"),
}
"""By the dense language model's type; a row here makes another family exportable."""

WHOLE = {"qwen3_vl": "qwen3_vl_moe"}
"""Vision-language models whose sparse form has another type; the others take a sparse language model in place of a dense one."""


def export_folder(
    checkpoint: str,
    out: str | Path,
    to: Kind,
    expert: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> str:
    """Writes the model that evomoe is not needed for, and its processor, to ``out``; says what was written.

    The folder is loaded again and must score random words as the sparse model does, or it is not kept.

    Args:
        to: "dense" or "native".
        expert: of "dense": its number, from 1, or "mean" for the experts' mean; by default expert 1.

    Raises:
        OptionError: it cannot be said in this form; the message says what is in the way.
        ValueError: ``out`` exists, the checkpoint is no EvoMoE, or the written model scores otherwise.
    """
    if to == "native" and expert is not None:
        raise OptionError("expert", "it goes with `to=dense`; leave it out, or add that.")
    expert = expert or "1"
    with new_folder(out) as folder:
        sparse = load_model(checkpoint, dtype, trust_remote_code).eval()
        if not is_sparse(sparse):
            raise ValueError(f"{checkpoint}: {type(sparse).__name__} is not an EvoMoE model; there is nothing to export.")
        words = _random_words(sparse)
        exported = native(sparse) if to == "native" else one_expert(sparse, expert)
        exported.save_pretrained(folder)
        for_servers(copied_processor(checkpoint, trust_remote_code)).save_pretrained(folder)
        # In float32: with half precision two experts that are nearly alike to the router may change places.
        again = load_model(checkpoint, dtype, trust_remote_code)
        assert is_sparse(again)
        if to == "native":
            expected = _scores(again.float().eval(), words)
        elif expert == "mean":
            expected = _scores(one_expert(again, expert).float().eval(), words)
        else:
            expected = _scores_of_expert(again.float().eval(), int(expert) - 1, words)
        _compare(_scores(load_model(folder).float().eval(), words), expected)
        what = "the whole" if to == "native" else "the mean of the experts" if expert == "mean" else f"expert {expert}"
        told = f"It scores random words as {what} of the sparse model does."
        write_text(folder / CARD, exported_card(exported, checkpoint, what, told))
    return f"{out}: {type(exported).__name__}, {sum(p.numel() for p in exported.parameters()):,} parameters. {told}"


def one_expert(sparse: SparseModel, expert: str) -> PreTrainedModel:
    """The dense model with one expert, or the mean of all, in every MoE layer. The model is converted in place.

    Args:
        expert: number from 1, or "mean".

    Raises:
        OptionError: there is no such expert, or experts alone do not make up the layer.
    """
    moe = sparse.config.moe
    _refuse_what_is_not_an_ffn(moe)
    if expert != "mean" and not (expert.isdecimal() and 1 <= int(expert) <= moe.num_experts):
        raise OptionError("expert", f"there is no '{expert}'; choose from 1 to {moe.num_experts}, or mean.")
    for name, block in [*sparse.named_modules()]:
        if isinstance(block, EvoMoEBlock):
            sparse.set_submodule(name, _mean_of(block) if expert == "mean" else cast(nn.Module, block.experts[int(expert) - 1]))
    config = dense_config(sparse.config)
    for module in sparse.modules():
        if getattr(module, "config", None) is sparse.config:
            vars(module)["config"] = config
    dense: PreTrainedModel = sparse
    dense.__class__ = type(sparse).base_class
    return dense


def native(sparse: SparseModel) -> PreTrainedModel:
    """The same model in one of transformers' own sparse families; it shares the weights of all but the experts.

    Raises:
        OptionError: no such family holds it; the message names the property that is in the way.
    """
    moe, dense = sparse.config.moe, dense_config(sparse.config)
    text = text_config(dense)
    family = NATIVE.get(text.model_type)
    if family is None:
        raise OptionError(
            "to",
            f"transformers has no sparse family for '{text.model_type}', only for {', '.join(NATIVE)}; choose dense.",
        )
    _refuse_what_native_cannot_say(moe, family, sparse)
    config = _native_config(dense, text, moe, family)
    with torch.device("meta"):
        model = cast(PreTrainedModel, auto_model(config).from_config(config))
    weights = _native_weights(sparse, family)
    kept = model.state_dict().keys()
    model.load_state_dict({name: tensor for name, tensor in weights.items() if name in kept}, assign=True, strict=True)
    for name, buffer in [*model.named_buffers()]:
        if buffer.is_meta:  # what is not saved, such as the frequencies of positions, the dense layers have too
            owner, _, own = name.rpartition(".")
            model.get_submodule(owner).register_buffer(own, sparse.get_buffer(name), persistent=False)
    model.tie_weights()
    model.generation_config = sparse.generation_config
    return model.eval()


def _refuse_what_is_not_an_ffn(moe: MoEConfig) -> None:
    reasons = {
        "its experts are those of a model that was sparse before": moe.attached,
        "a shared expert is mixed in by a gate": moe.shared_expert,
        "its experts are slices of the dense FFN": moe.expert_share > 1,
    }
    for reason, applies in reasons.items():
        if applies:
            raise OptionError("to", f"a dense model cannot say what this one computes: {reason}.")


def _refuse_what_native_cannot_say(moe: MoEConfig, family: Native, sparse: SparseModel) -> None:
    layers = text_config(sparse.config).num_hidden_layers
    experts = next(iter(sparse.moe_blocks.values())).experts
    gated = experts.weights(0).keys() == {f"{map_}_proj.weight" for map_ in ("gate", "up", "down")}
    reasons = {
        f"router '{moe.router}' (linear alone has a counterpart)": moe.router != "linear",
        f"gate '{moe.gate}' with {moe.num_experts_per_tok} experts per token": not _gate_fits(moe, family),
        "a shared expert, which is mixed in": moe.shared_expert,
        "experts of a model that was sparse before": moe.attached,
        f"dense layers among sparse ones ({family.model_type} has experts in every layer: `moe_layers=all`)": family.in_every_layer
        and len(moe.moe_layers) < layers,
        "experts that are not gate, up and down without biases": not gated,
    }
    for reason, applies in reasons.items():
        if applies:
            raise OptionError("to", f"{family.model_type} cannot say what this model computes: it has {reason}. Choose dense.")


def _gate_fits(moe: MoEConfig, family: Native) -> bool:
    if moe.gate == "probability":
        return family.can_keep_probabilities
    return moe.gate == "normalised" or moe.num_experts_per_tok == 1  # straight_through then weighs with 1, as normalised does


def _native_config(dense: PreTrainedConfig, text: PreTrainedConfig, moe: MoEConfig, family: Native) -> PreTrainedConfig:
    values = text.to_dict() | {
        "num_local_experts" if family.model_type == "mixtral" else "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.num_experts_per_tok,
        "moe_intermediate_size": text.intermediate_size // moe.expert_share,
        "mlp_only_layers": [layer for layer in range(text.num_hidden_layers) if layer not in moe.moe_layers],
        "decoder_sparse_step": 1,
        "norm_topk_prob": moe.gate != "probability",
        "output_router_logits": False,
    }
    if family.in_every_layer:
        values["intermediate_size"] = values.pop("moe_intermediate_size")
        for key in ("mlp_only_layers", "decoder_sparse_step", "norm_topk_prob"):
            del values[key]
    if family.shared_expert:
        values["shared_expert_intermediate_size"] = 1
    for key in ("model_type", "architectures", "transformers_version", "dtype", "auto_map"):
        values.pop(key, None)
    sparse_text = AutoConfig.for_model(family.model_type, **values)
    if text is dense:
        return sparse_text
    whole = dense.to_dict()
    model_type = WHOLE.get(whole.pop("model_type"), dense.model_type)
    for key in ("architectures", "transformers_version", "dtype", "auto_map", "text_config"):
        whole.pop(key, None)
    if model_type != dense.model_type:
        whole["vision_config"].pop("model_type", None)
        return AutoConfig.for_model(model_type, text_config=sparse_text.to_dict(), **whole)
    return cast(Any, type(dense))(text_config=sparse_text, **whole)


def _native_weights(sparse: SparseModel, family: Native) -> dict[str, Tensor]:
    """All tensors by the native model's names."""
    blocks = {f"{name}.": block for name, block in sparse.named_modules() if isinstance(block, EvoMoEBlock)}
    found = {name: tensor for name, tensor in sparse.state_dict().items() if not name.startswith(tuple(blocks))}
    for prefix, block in blocks.items():
        gate, up, down = (
            torch.stack([block.experts.weights(e)[f"{map_}_proj.weight"].detach() for e in range(len(block.experts))])
            for map_ in ("gate", "up", "down")
        )
        found[f"{prefix}gate.weight"] = block.router.get_parameter("gate.weight").detach().to(down.dtype)
        found[f"{prefix}experts.gate_up_proj"] = torch.cat([gate, up], dim=1)
        found[f"{prefix}experts.down_proj"] = down
        if family.shared_expert:  # one inner unit that gives nothing
            D = down.shape[1]
            for name, shape in (("gate_proj", (1, D)), ("up_proj", (1, D)), ("down_proj", (D, 1))):
                found[f"{prefix}shared_expert.{name}.weight"] = down.new_zeros(shape)
            found[f"{prefix}shared_expert_gate.weight"] = down.new_zeros(1, D)
    return found


@torch.no_grad()
def _mean_of(block: EvoMoEBlock) -> nn.Module:
    experts = [block.experts.weights(e) for e in range(len(block.experts))]
    for name, parameter in experts[0].items():
        parameter.copy_(torch.stack([expert[name].float() for expert in experts]).mean(0))
    return cast(nn.Module, block.experts[0])


def _random_words(model: PreTrainedModel) -> Tensor:
    """(2, 24) int64 token ids, none of them an image token."""
    text = text_config(model.config)
    special = {*image_token_ids(model.config), text.pad_token_id, getattr(model.config, "pad_token_id", None)}
    ordinary = torch.tensor([token for token in range(min(text.vocab_size, 50_000)) if token not in special])
    chosen = torch.randint(len(ordinary), (2, 24), generator=torch.Generator().manual_seed(0))
    return ordinary[chosen].to(model.device)


def _scores_of_expert(sparse: SparseModel, number: int, ids_BS: Tensor) -> Tensor:
    """Scores with this expert alone, as an intervention gives them."""
    routers = {block: block.router for block in sparse.moe_blocks.values()}
    for block, router in routers.items():
        block.router = FixedRouter(router.hidden_size, router.num_experts, expert=number)
    try:
        return _scores(sparse, ids_BS)
    finally:
        for block, router in routers.items():
            block.router = router


@torch.no_grad()
def _scores(model: PreTrainedModel, ids_BS: Tensor) -> Tensor:
    call: Callable[..., Any] = model
    return call(input_ids=ids_BS, attention_mask=torch.ones_like(ids_BS)).logits.float()


def _compare(found: Tensor, expected: Tensor) -> None:
    difference = float((found - expected).abs().max() / expected.std())
    if not difference <= TOLERANCE:
        raise ValueError(
            f"The exported model scores random words otherwise, by {difference:.2g} standard deviations; it is not kept. This is a fault "
            "of evomoe: please report the model's family and its config.json."
        )
