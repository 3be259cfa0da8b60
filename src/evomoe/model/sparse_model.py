"""The model classes ``EvoMoE<Base>``, which put MoE layers into any Hugging Face VLM.

Implements: Eq. 9, Eq. 10, Eq. 11.
"""

import inspect
import logging
import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import make_dataclass
from functools import cache, partial
from typing import Any, ClassVar, TypeAlias, TypeGuard

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from evomoe.model.attached_block import AttachedBlock
from evomoe.model.aux_losses import AUX_LOSSES
from evomoe.model.block import EvoMoEBlock
from evomoe.model.configuration import EvoMoEConfig, MoEConfig
from evomoe.model.experts import Experts
from evomoe.model.ffn_maps import slice_of
from evomoe.model.fixed_shapes import FixedShapes, compiles_an_answer
from evomoe.model.forward_pass import ForwardPass, checkpoint_with_pass, running
from evomoe.model.kept import weights_stay
from evomoe.model.modality import Modality, modality_of_inputs
from evomoe.model.routers import ROUTERS
from evomoe.model.saving import Saved
from evomoe.model.structure import decoder_layers, find_ffn, image_token_ids, text_config
from evomoe.support import hf

logger = logging.getLogger(__name__)


class EvoMoEMixin(Saved):
    """What every ``EvoMoE<Base>`` adds to its base class: MoE layers, the modality note and the auxiliary losses."""

    config: EvoMoEConfig
    base_class: ClassVar[type[PreTrainedModel]]
    block_class: ClassVar[type[EvoMoEBlock]] = EvoMoEBlock
    attached_block_class: ClassVar[type[AttachedBlock]] = AttachedBlock

    def __init__(self, config: EvoMoEConfig, *args, **kwargs) -> None:
        super().__init__(config, *args, **kwargs)
        moe, layers, hidden_size = config.moe, decoder_layers(self), text_config(config).hidden_size
        for index in moe.moe_layers:
            if moe.attached:
                self.attached_block_class.put_into(layers[index], index, moe, hidden_size)
                continue
            name = find_ffn(layers[index], hidden_size)
            ffn = layers[index].get_submodule(name)
            experts, shared = empty_experts(ffn, moe), deepcopy(ffn) if moe.shared_expert else None
            layers[index].set_submodule(name, self.block_class(index, moe, hidden_size, experts, shared))
        self.post_init()

    @property
    def moe_blocks(self) -> dict[int, EvoMoEBlock]:
        """The MoE layers by decoder layer index, in order."""
        return {module.layer: module for module in self.modules() if isinstance(module, EvoMoEBlock)}

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' ``generate``; what routers make of their weights alone is made once for it."""
        own: Any = super()
        with weights_stay():
            return own.generate(*args, **kwargs)

    def pack_experts(self) -> None:
        """Lets frozen experts run as one grouped product, where they can; call it once the model is on its device."""
        for block in self.moe_blocks.values():
            block.experts.pack()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        modality: Modality | None = None,
        output_router_logits: bool = False,
        return_dict: bool = True,
        **kwargs: Any,
    ):
        """The base model's forward, with the sparse layers.

        Args:
            input_ids, attention_mask, inputs_embeds, labels, **kwargs: as the base model takes them.
            modality: kinds of the tokens; read off the inputs when not given.
            output_router_logits: also return ``router_logits``, a tuple of (T, E) float32 over the real tokens, and
                ``records``, a dict of ``LayerRecord`` by layer.
            return_dict: False for a tuple.

        Raises:
            ValueError: there are neither ids nor embeddings, or an input is on another device or of another precision.

        Returns:
            The base model's output. With ``labels``: ``loss`` is the language loss (Eq. 11) plus the weighted auxiliary
            losses (Eq. 9); ``aux_loss`` is the latter's unweighted values by name, detached.
        """
        coefficients = self.config.moe.aux_losses if labels is not None else {}
        inputs = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "labels": labels}
        inputs = {name: value for name, value in inputs.items() if value is not None}
        try:
            modality = modality or self._modality(input_ids, inputs_embeds, attention_mask, kwargs.get("past_key_values"))
            forward_pass = ForwardPass(modality, recording=output_router_logits or bool(coefficients))
            with running(forward_pass):
                out = super().forward(attention_mask=attention_mask, return_dict=True, **inputs, **kwargs)
        except RuntimeError as error:
            mismatch = _mismatch(self, inputs | kwargs | {"attention_mask": attention_mask})
            if mismatch and re.search(r"dtype|scalar type|device|meta tensor", str(error)):
                raise ValueError(mismatch) from error
            raise
        added: dict[str, Any] = {}
        if coefficients and labels is not None:
            aux_losses = self.aux_losses(forward_pass)
            weight = _share_of_batch(labels, kwargs.get("num_items_in_batch"))
            added["loss"] = out["loss"] + weight * sum(coefficients[name] * loss for name, loss in aux_losses.items())
            added["aux_loss"] = {name: loss.detach() for name, loss in aux_losses.items()}
        if output_router_logits:
            added["router_logits"] = tuple(record.routing.logits_TE for record in forward_pass.records.values())
            added["records"] = dict(forward_pass.records)
        if added:
            out = output_class(type(out))(**{**out, **added})
        return out if return_dict else out.to_tuple()

    def _modality(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, attention_mask, cache) -> Modality:
        image_tokens, embed = image_token_ids(self.config), self.get_input_embeddings()
        if compiles_an_answer():
            return modality_of_inputs(image_tokens, input_ids, inputs_embeds, None, embed, kind=FixedShapes)
        past_length = 0 if cache is None else int(cache.get_seq_length())
        return modality_of_inputs(image_tokens, input_ids, inputs_embeds, attention_mask, embed, past_length)

    def aux_losses(self, forward_pass: ForwardPass) -> dict[str, Tensor]:
        """Each configured auxiliary loss, combined over the MoE layers by mean or sum (``aux_reduction``)."""
        moe = self.config.moe
        reduce = torch.mean if moe.aux_reduction == "mean" else torch.sum
        return {
            name: reduce(torch.stack([AUX_LOSSES[name](record) for record in forward_pass.records.values()]))
            for name in moe.aux_losses
        }

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable | None = None, *args: Any, **kwargs: Any
    ) -> None:
        if gradient_checkpointing_func is None:
            super()._set_gradient_checkpointing(enable, **kwargs)
            return
        if enable and self.config.moe.aux_losses and getattr(gradient_checkpointing_func, "keywords", {}).get("use_reentrant"):
            # The reentrant kind runs layers without gradients first, so the auxiliary losses would not reach the router.
            logger.warning("use_reentrant=True is taken as False: auxiliary losses need it, and the gradients are the same.")
            gradient_checkpointing_func = partial(gradient_checkpointing_func, use_reentrant=False)
        super()._set_gradient_checkpointing(enable, checkpoint_with_pass(gradient_checkpointing_func), *args, **kwargs)


SparseModel: TypeAlias = EvoMoEMixin
"""A model of any family with MoE layers."""


def is_sparse(model: nn.Module) -> TypeGuard[SparseModel]:
    """Whether a model is an EvoMoE."""
    return isinstance(model, EvoMoEMixin)


def empty_experts(ffn: nn.Module, moe: MoEConfig) -> Experts:
    """Experts of the shape that a configuration says, for weights that are yet to come; the FFN itself is the first if it fits."""
    if moe.expert_share > 1:
        return Experts([slice_of(ffn, number, moe.expert_share) for number in range(moe.num_experts)])
    return Experts([ffn, *(deepcopy(ffn) for _ in range(moe.num_experts - 1))])


def _mismatch(model: PreTrainedModel, inputs: dict[str, Any]) -> str | None:
    """Says which input is on another device than the model, or of another precision; None if none is."""
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.device != model.device and not hasattr(model, "hf_device_map"):
            return f"{name} is on {value.device}, the model on {model.device}; pass inputs.to(model.device)."
        if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != model.dtype and name != "attention_mask":
            return f"{name} is {value.dtype}, the model {model.dtype}; pass inputs.to(model.device, model.dtype)."
    return None


def _share_of_batch(labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor | float:
    """How much of the optimiser step's loss this micro-batch carries: its share of the target tokens.

    The Trainer passes the step's number of target tokens and then adds the micro-batches up without dividing.
    """
    if num_items_in_batch is None:
        return 1.0
    return (labels[..., 1:] != -100).sum() / num_items_in_batch


@cache
def output_class(base: type) -> type:
    """A model's output class with the fields that EvoMoE adds; as true fields, so that wrappers such as DDP can rebuild it."""
    added = [(name, Any, None) for name in ("aux_loss", "router_logits", "records")]
    return make_dataclass(f"EvoMoE{base.__name__}", added, bases=(base,))


@cache
def model_class(base: type[PreTrainedModel]) -> type[SparseModel]:
    """``EvoMoE<Base>``: the sparse model class of a dense one."""

    def forward(self, *args, **kwargs):
        return EvoMoEMixin.forward(self, *args, **kwargs)

    # generate() and the Trainer look at the signature to learn which inputs the model takes.
    own = inspect.signature(EvoMoEMixin.forward).parameters
    of_base = inspect.signature(base.forward).parameters
    merged = {n: p.replace(kind=p.KEYWORD_ONLY) for n, p in {**own, **of_base}.items() if p.kind is not p.VAR_KEYWORD}
    merged["self"] = own["self"]
    merged["input_ids"] = own["input_ids"]
    order = [merged.pop("self"), merged.pop("input_ids"), *merged.values(), own["kwargs"]]
    vars(forward)["__signature__"] = inspect.Signature(order)
    forward.__doc__ = EvoMoEMixin.forward.__doc__
    members = {
        hf.KEEP_IN_FLOAT32: {
            *(getattr(base, hf.KEEP_IN_FLOAT32, None) or ()),
            *(name for router in ROUTERS.values() for name in getattr(router, "float32", ())),
        },
        "forward": forward,
        "__module__": "evomoe.auto",  # where it is an attribute, so that it pickles
        "__doc__": f"{base.__name__} with a mixture of experts.",
        "base_class": base,
    }
    return type(f"EvoMoE{base.__name__}", (EvoMoEMixin, base), members)
