"""EvoMoE models in vLLM: its Transformers backend, with our routers before its own kernels for experts.

N tokens of the longest pass.
"""

from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from transformers import AutoModel
from vllm.config import VllmConfig
from vllm.model_executor.models.transformers import moe as backend
from vllm.model_executor.models.transformers.base import Base
from vllm.model_executor.models.transformers.causal import CausalMixin
from vllm.model_executor.models.transformers.moe import MoEMixin
from vllm.model_executor.models.transformers.multimodal import (
    MultiModalDummyInputsBuilder,
    MultiModalMixin,
    MultiModalProcessingInfo,
    MultiModalProcessor,
)
from vllm.model_executor.models.utils import WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY

from evomoe.model.configuration import EvoMoEConfig
from evomoe.model.families import dense_config
from evomoe.model.structure import image_token_ids
from evomoe.serving.served_block import ServedBlock, served_class
from evomoe.serving.vllm_engine import refusal, refusal_on_cpus
from evomoe.support import hf
from evomoe.support.processor import for_servers

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
"""What vLLM's kernels call the activations of transformers."""
GATED = {"gate_proj.weight", "up_proj.weight", "down_proj.weight"}
"""The weights of an FFN that these kernels can run."""


class _EvoMoE(MoEMixin):
    """What text-only models and those with pictures share."""

    config: EvoMoEConfig

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        config = vllm_config.model_config.hf_config
        if reason := refusal_of(config, vllm_config):
            raise ValueError(f"vLLM cannot serve this EvoMoE: {reason}")
        served = served_class(hf.model_classes(AutoModel)[type(dense_config(config))])
        served.config_class = type(config)
        AutoModel.register(type(config), served, exist_ok=True)
        self.longest = vllm_config.scheduler_config.max_num_batched_tokens
        super().__init__(vllm_config=vllm_config, prefix=prefix)

    @property
    def blocks(self) -> list[ServedBlock]:
        """The MoE layers."""
        return [module for module in self.model.modules() if isinstance(module, ServedBlock)]

    def recursive_replace(self) -> None:
        """As vLLM does, told what it would read off the configuration of a family that was born sparse."""
        blocks, activation = self.blocks, activation_of(self.text_config)
        self.noting = (blocks[0],)  # found once, not in each step; in a tuple, so that it is no second submodule
        # One tensor for all layers, always at the same address, as captured kernels need it.
        is_image_N = torch.zeros(self.longest, dtype=torch.bool, device=self.device_config.device)
        for block in blocks:
            block.register_buffer("is_image_N", is_image_N, persistent=False)
        if (reason := kernels_cannot_run(blocks[0], activation)) is not None:
            if not self.model_config.enforce_eager or self.parallel_config.tensor_parallel_size > 1:
                raise ValueError(f"{reason} vLLM can serve it one expert after the other: --enforce-eager, on one device.")
            self.moe_layers, self.mlp_layers, self.num_moe_layers = [], [], 0
            Base.recursive_replace(self)
            return
        self.text_config.num_experts_per_tok = blocks[0].most_slots()
        self.text_config.moe_intermediate_size = ffn_width(blocks[0])
        own = {"activation": ACTIVATIONS[activation]}
        factory = backend.FusedMoEFactory
        with mock.patch.object(backend, "FusedMoEFactory", lambda **options: factory(**options | own)):
            super().recursive_replace()
        self.hf_to_vllm_mapper |= WeightsMapper(orig_to_new_substr={".experts.stacked.": ".experts."})

    def forward(self, input_ids: Tensor | None, *args: Any, **kwargs: Any) -> Any:
        """Notes which tokens are images, by the ids: a placeholder that the model itself wrote is one too, as in ``generate``."""
        if input_ids is not None:
            is_image_N = self.noting[0].is_image_N[: input_ids.shape[-1]].zero_()
            for token in image_token_ids(self.config):
                is_image_N |= input_ids.flatten() == token
        return super().forward(input_ids, *args, **kwargs)


class EvoMoEForCausalLM(_EvoMoE, CausalMixin):
    """Any text-only EvoMoE."""


class ProcessingInfo(MultiModalProcessingInfo):
    """What vLLM asks of a processor before it gives it pictures."""

    def get_hf_processor(self, **kwargs: Any) -> Any:
        return for_servers(super().get_hf_processor(**kwargs))


@MULTIMODAL_REGISTRY.register_processor(MultiModalProcessor, info=ProcessingInfo, dummy_inputs=MultiModalDummyInputsBuilder)
class EvoMoEForConditionalGeneration(_EvoMoE, MultiModalMixin, CausalMixin):
    """Any EvoMoE that sees pictures."""

    requires_raw_input_tokens = True


def refusal_of(config: EvoMoEConfig, vllm_config: VllmConfig) -> str | None:
    """Why vLLM would answer otherwise than transformers does, and what to do; None if it would not."""
    parallel = vllm_config.parallel_config
    if parallel.pipeline_parallel_size > 1:
        return "with --pipeline-parallel-size the later stages would not know which tokens are images; leave it out."
    if parallel.enable_expert_parallel or parallel.enable_eplb:
        return "its experts are not tested apart; leave out --enable-expert-parallel and --enable-eplb."
    if getattr(parallel, "enable_dbo", False):
        return "two batches at once would share the note of which tokens are images; leave out --enable-dbo."
    return refusal(config) or refusal_on_cpus(config)


def kernels_cannot_run(block: ServedBlock, activation: str) -> str | None:
    """Why vLLM's kernels cannot run a layer's experts; None if they can."""
    experts = block.experts
    if isinstance(experts, nn.ModuleList) and {name for name, _ in experts[0].named_parameters()} != GATED:
        return f"The experts are of {type(experts[0]).__name__}, not gate, up and down maps without biases."
    return None if activation in ACTIVATIONS else f"The experts' activation is {activation}, which vLLM's kernels do not have."


def activation_of(text_config: Any) -> str:
    """The name of an FFN's activation, as transformers' configurations have it."""
    names = ("hidden_act", "hidden_activation", "activation_function")
    return next((value for name in names if isinstance(value := getattr(text_config, name, None), str)), "silu")


def ffn_width(block: ServedBlock) -> int:
    """The inner width of an expert, read off its weights."""
    return block.experts.weights(0)["down_proj.weight" if isinstance(block.experts, nn.ModuleList) else "down_proj"].shape[-1]
