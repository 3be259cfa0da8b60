"""The network: an MoE layer, and the model classes ``EvoMoE<Base>`` that put it into any Hugging Face VLM.

Implements: Eq. 2, Eq. 3, Eq. 4, Eq. 9, Eq. 10, Eq. 11, Table 6 (shared expert).
"""

import inspect
import logging
import re
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import make_dataclass
from functools import cache, partial
from typing import Any

import torch
from huggingface_hub import ModelCard, create_repo, file_exists
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from evomoe.aux_losses import AUX_LOSSES, LayerRecord
from evomoe.configuration import EvoMoEConfig, MoEConfig
from evomoe.expert_init.partition import slice_of
from evomoe.experts import Experts, StackedExperts
from evomoe.hub import CARD, card_of_folder, has_remote_code, model_card, set_remote_code, write_remote_module
from evomoe.modality import ForwardPass, Modality, checkpoint_with_pass, current_pass, modality_of_inputs, running
from evomoe.routers import ROUTERS, Router
from evomoe.structure import decoder_layers, find_ffn, find_sparse_ffn, image_token_ids, text_config

logger = logging.getLogger(__name__)


class EvoMoEBlock(nn.Module):
    """The FFN of one MoE layer: a router, its experts and, if asked for, a shared expert.

    Eq. 4: takes and returns hidden states (B, S, D) as the dense FFN does; padding is not routed, gives zero.
    """

    def __init__(self, layer: int, moe: MoEConfig, hidden_size: int, experts: Iterable[nn.Module] | StackedExperts) -> None:
        super().__init__()
        self.layer, self.moe = layer, moe
        self.router: Router = ROUTERS[moe.router](hidden_size, moe.num_experts, **moe.router_options)
        self.router.check(moe.num_experts_per_tok, moe.gate)
        shared = None
        if isinstance(experts, StackedExperts):
            self.experts: Experts | StackedExperts = experts
        else:
            *routed, shared = [*experts] if moe.shared_expert else [*experts, None]
            self.experts = Experts(routed)
        self.shared_expert: nn.Module | None = shared
        self.shared_expert_gate = nn.Linear(hidden_size, 1, bias=False) if moe.shared_expert else None
        if self.shared_expert_gate is not None:
            nn.init.zeros_(self.shared_expert_gate.weight)
        for module in [*self.router.modules(), self.shared_expert_gate]:
            if module is not None and not any(p.is_meta for p in module.parameters()):
                module._is_hf_initialized = True  # routers draw their own weights; transformers must not draw again

    def forward(self, hidden_BSD: Tensor) -> Tensor:
        forward_pass = current_pass()
        modality, moe = forward_pass.modality, self.moe
        x_TD = modality.real(hidden_BSD)
        routing = self.router.route(x_TD, modality, moe.num_experts_per_tok, moe.gate, moe.expert_dropout)
        if forward_pass.recording:
            forward_pass.records[self.layer] = LayerRecord(routing, modality, x_TD, self.experts)
        if routing.input_scale_T1 is not None:
            x_TD = x_TD * routing.input_scale_T1.to(x_TD.dtype)
        y_TD = self.experts(x_TD, routing.index_TK, routing.weight_TK)
        if (virtual := self.router.virtual_experts) is not None:
            y_TD = virtual.add(y_TD, x_TD, routing.index_TK, routing.weight_TK)
        if self.shared_expert is not None and self.shared_expert_gate is not None:
            share_T1 = self.shared_expert_gate(x_TD).float().sigmoid().to(y_TD.dtype)
            y_TD = torch.lerp(y_TD, self.shared_expert(x_TD), share_T1)
        return modality.restore(y_TD, hidden_BSD)


class AttachedBlock(EvoMoEBlock):
    """Router and experts inside the block of a model that was sparse before, where its experts were.

    The block goes on to do what else it does, such as run a shared expert; what its own router said is not heeded.
    """

    @classmethod
    def put_into(cls, decoder_layer: nn.Module, layer: int, moe: MoEConfig, hidden_size: int) -> "AttachedBlock":
        """Takes the place of the experts in a decoder layer's block, and of its router."""
        found = find_sparse_ffn(decoder_layer, hidden_size)
        assert found is not None
        name, router = found
        block = decoder_layer.get_submodule(name)
        attached = cls(layer, moe, hidden_size, StackedExperts(block.experts))
        block.experts = attached
        setattr(block, router, NoRouter())
        return attached

    def forward(self, hidden_ND: Tensor, *of_no_router: None) -> Tensor:
        return super().forward(hidden_ND)


class NoRouter(nn.Module):
    """Stands where a block's own router was, and chooses nothing."""

    def forward(self, *args: Any) -> tuple[None, None, None]:
        return None, None, None


class EvoMoEMixin:
    """What every ``EvoMoE<Base>`` adds to its base class: MoE layers, the modality note and the auxiliary losses."""

    config: EvoMoEConfig

    def __init__(self, config: EvoMoEConfig, *args, **kwargs) -> None:
        super().__init__(config, *args, **kwargs)  # pyrefly: ignore[bad-argument-count]
        moe, layers, hidden_size = config.moe, decoder_layers(self), text_config(config).hidden_size
        for index in moe.moe_layers:
            if moe.attached:
                AttachedBlock.put_into(layers[index], index, moe, hidden_size)
                continue
            name = find_ffn(layers[index], hidden_size)
            ffn = layers[index].get_submodule(name)
            if moe.expert_init == "partition":
                experts = [slice_of(ffn, number, moe.num_experts) for number in range(moe.num_experts)]
            else:
                experts = [ffn, *(deepcopy(ffn) for _ in range(moe.num_experts - 1))]
            shared = [deepcopy(ffn)] * moe.shared_expert
            layers[index].set_submodule(name, EvoMoEBlock(index, moe, hidden_size, [*experts, *shared]))
        self.post_init()

    @property
    def moe_blocks(self) -> dict[int, EvoMoEBlock]:
        """The MoE layers by decoder layer index, in order."""
        return {module.layer: module for module in self.modules() if isinstance(module, EvoMoEBlock)}

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
        if coefficients:
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
        past_length = 0 if cache is None else int(cache.get_seq_length())
        image_tokens, embed = image_token_ids(self.config), self.get_input_embeddings()
        return modality_of_inputs(image_tokens, input_ids, inputs_embeds, attention_mask, embed, past_length)

    def aux_losses(self, forward_pass: ForwardPass) -> dict[str, Tensor]:
        """Each configured auxiliary loss, combined over the MoE layers by mean or sum (``aux_reduction``)."""
        moe = self.config.moe
        reduce = torch.mean if moe.aux_reduction == "mean" else torch.sum
        return {
            name: reduce(torch.stack([AUX_LOSSES[name](record) for record in forward_pass.records.values()]))
            for name in moe.aux_losses
        }

    def __getstate__(self) -> dict[str, Any]:
        """For pickling: without the hooks by which transformers captures outputs, which do not pickle; it sets them anew."""
        for module in self.modules():
            vars(module).pop("_output_capturing_hooks_installed", None)
            for key, hook in [*module._forward_hooks.items()]:
                if getattr(hook, "__name__", "") == "output_capturing_hook":
                    del module._forward_hooks[key]
        return dict(vars(self))

    def save_pretrained(self, save_directory, *args, remote_code: bool | None = None, is_main_process: bool = True, **kwargs):
        """transformers' ``save_pretrained``, always in the model's own tensor names.

        The base family's hub format would be undone on loading for transformers' own classes only, and tensors be lost.

        Args:
            save_directory, *args, **kwargs: as transformers takes them.
            remote_code: also write the module that imports evomoe for processes that have not, for those who load with
                ``trust_remote_code=True``, see ``evomoe.hub``; None does what the folder did that the model came from.
            is_main_process: as transformers takes it.
        """
        kwargs["save_original_format"] = False
        if remote_code is not None:
            set_remote_code(self.config, remote_code)
        super().save_pretrained(save_directory, *args, is_main_process=is_main_process, **kwargs)
        if is_main_process and has_remote_code(self.config):
            write_remote_module(save_directory)

    def push_to_hub(self, repo_id: str, *, token: str | bool | None = None, private: bool | None = None, **kwargs):
        """transformers' ``push_to_hub``; a repository without a model card gets EvoMoE's, or the one the model was loaded with."""
        repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        if not file_exists(repo_id, CARD, revision=kwargs.get("revision"), token=token):  # transformers would write an empty form
            # A model that was just converted still bears the dense model's name.
            card = card_of_folder(self.name_or_path) or model_card(self.config.moe, type(self).__name__, self.name_or_path)
            where = {name: kwargs[name] for name in ("revision", "create_pr") if name in kwargs}
            ModelCard(card).push_to_hub(repo_id, token=token, **where)
        return super().push_to_hub(repo_id, token=token, private=private, **kwargs)

    def _set_gradient_checkpointing(self, enable: bool = True, gradient_checkpointing_func=None, **kwargs) -> None:
        if gradient_checkpointing_func is not None:
            if (
                enable
                and self.config.moe.aux_losses
                and getattr(gradient_checkpointing_func, "keywords", {}).get("use_reentrant")
            ):
                # The reentrant kind runs layers without gradients first, so the auxiliary losses would not reach the router.
                logger.warning("use_reentrant=True is taken as False: auxiliary losses need it, and the gradients are the same.")
                gradient_checkpointing_func = partial(gradient_checkpointing_func, use_reentrant=False)
            kwargs["gradient_checkpointing_func"] = checkpoint_with_pass(gradient_checkpointing_func)
        super()._set_gradient_checkpointing(enable, **kwargs)


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
def model_class(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
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
    forward.__signature__ = inspect.Signature(order)
    forward.__doc__ = EvoMoEMixin.forward.__doc__
    members = {
        "_keep_in_fp32_modules_strict": {*(base._keep_in_fp32_modules_strict or ()), "bias.value_N"},  # of ChoiceBias
        "forward": forward,
        "__module__": "evomoe.families",  # where it is an attribute, so that it pickles
        "__doc__": f"{base.__name__} with a mixture of experts.",
        "base_class": base,
    }
    return type(f"EvoMoE{base.__name__}", (EvoMoEMixin, base), members)
