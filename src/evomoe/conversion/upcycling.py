"""Dense model in, sparse model out, for any VLM family."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from transformers.modeling_utils import PreTrainedModel

from evomoe.conversion.expert_init import INITS, config_fields
from evomoe.model.block import EvoMoEBlock
from evomoe.model.configuration import EvoMoEConfig, MoEConfig
from evomoe.model.experts import Experts
from evomoe.model.families import sparse_config
from evomoe.model.sparse_model import SparseModel, is_sparse, model_class
from evomoe.model.structure import UnsupportedModelError, check_convertible, decoder_layers, text_config
from evomoe.recipe.options import LARGEST_SEED, check_whole


def upcycle(
    model: PreTrainedModel,
    *,
    moe_layers: str | Sequence[int] = "alternating",
    expert_init: str = "replicate",
    init_options: dict[str, Any] | None = None,
    seed: int = 0,
    **moe_fields: Any,
) -> SparseModel:
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


def become(model: PreTrainedModel, config: EvoMoEConfig, sparse_class: type[SparseModel]) -> SparseModel:
    """Hands the sparse configuration to every submodule that holds the dense one, and the class to the model."""
    dense = model.config
    for module in model.modules():
        if getattr(module, "config", None) is dense:
            vars(module)["config"] = config
    model.__class__ = sparse_class
    assert is_sparse(model)
    return model


def sparse_form(model: PreTrainedModel, moe: MoEConfig) -> tuple[EvoMoEConfig, type[SparseModel]]:
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
        if is_sparse(model):
            raise UnsupportedModelError("The model is an EvoMoE model already; start from the dense model.")
        check_whole("seed", seed, 0, LARGEST_SEED)
        self.names, self.layers = check_convertible(model), decoder_layers(model)
        made_by = config_fields(expert_init, moe_fields.get("num_experts", MoEConfig.num_experts))
        self.moe = MoEConfig.for_model(model.config, placement, **made_by, **moe_fields)
        self.config, self.sparse_class = sparse_form(model, self.moe)
        self.init_options, self.seed = init_options or {}, seed
        ffns = {index: self.layers[index].get_submodule(self.names[index]) for index in self.moe.moe_layers}
        INITS[expert_init].read(self.init_options, expert_init).check_fits(ffns, self.moe.num_experts)

    def blocks(self) -> Iterator[EvoMoEBlock]:
        """The MoE layers, in order; each is made when asked for and holds the dense FFN as its first expert.

        A layer's router depends on the seed and the layer alone: its weights are the same whatever else draws in between.
        """
        generator = torch.Generator("cpu").manual_seed(self.seed)
        for index in self.moe.moe_layers:
            yield self._block(index, generator)

    def _block(self, index: int, generator: torch.Generator) -> EvoMoEBlock:
        ffn, moe = self.layers[index].get_submodule(self.names[index]), self.moe
        experts = INITS[moe.expert_init](ffn, moe.num_experts, index, generator, **self.init_options)
        shared = deepcopy(ffn) if moe.shared_expert else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed * 1009 + index)
            block = EvoMoEBlock(index, moe, text_config(self.config).hidden_size, Experts(experts), shared)
        weight = next(experts[0].parameters())
        return block.to(weight.device, weight.dtype).train(experts[0].training)
