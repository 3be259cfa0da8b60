"""The configuration and model classes of every family, made on demand and registered with transformers' auto classes.

Importing this module registers them.

``EvoMoELlavaConfig``, ``EvoMoELlavaForConditionalGeneration`` and so on are attributes of ``evomoe.auto``, so that they pickle.
"""

from copy import copy
from dataclasses import asdict
from functools import cache
from typing import Any

import transformers
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from evomoe.model.configuration import MODEL_TYPE, EvoMoEConfig, MoEConfig
from evomoe.model.remote_code import set_remote_code
from evomoe.support import hf


class AnyEvoMoEConfig(EvoMoEConfig):
    """What ``AutoConfig`` finds for a saved EvoMoE model: hands over to the class of its family."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        base = (config_dict.get("evomoe") or {}).get("base_model_type")
        if base is None:
            raise ValueError("config.json has model_type 'evomoe' but no 'evomoe' part with a 'base_model_type'.")
        return config_class(base).from_dict(config_dict, **kwargs)


@cache
def config_class(base_model_type: str) -> type[EvoMoEConfig]:
    """The EvoMoE configuration class of a dense family; its model classes are registered with it.

    Raises:
        ValueError: this version of transformers does not know the family.
    """
    try:
        base = type(AutoConfig.for_model(base_model_type))
    except ValueError as error:
        raise ValueError(
            f"The model family '{base_model_type}' is unknown to transformers {transformers.__version__}; upgrade transformers."
        ) from error
    members = {"model_type": MODEL_TYPE, "__module__": "evomoe.auto", "__doc__": f"{base.__name__} with a mixture of experts."}
    family = type(f"EvoMoE{base.__name__}", (EvoMoEConfig, base), members)
    for auto, base_model in _base_models(base):
        from evomoe.model.sparse_model import model_class  # not above: whoever reads a configuration need not load the networks

        sparse = model_class(base_model)
        sparse.config_class = family
        auto.register(family, sparse, exist_ok=True)
    return family


def sparse_config(dense: PreTrainedConfig, moe: MoEConfig) -> EvoMoEConfig:
    """The configuration of the sparse model made from a dense one; the dense configuration is left alone."""
    # A copy of the object rather than of its fields: transformers keeps unsaved state, such as the chosen attention, in it.
    sparse: Any = copy(dense)
    sparse.__class__ = config_class(moe.base_model_type)
    sparse.evomoe, sparse.architectures = asdict(moe), None
    set_remote_code(sparse, False)  # a dense model's own code knows nothing of experts
    return sparse


def dense_config(sparse: EvoMoEConfig) -> PreTrainedConfig:
    """The configuration of the dense model that a sparse one was made from; the sparse configuration is left alone."""
    dense: Any = copy(sparse)
    dense.__class__ = type(AutoConfig.for_model(sparse.moe.base_model_type))
    dense.architectures = None
    del dense.evomoe
    vars(dense).pop("model_type", None)  # which a loaded configuration has of its own; the class says the right one
    return dense


def _base_models(config: type[PreTrainedConfig]) -> list[tuple[type, type]]:
    """The auto classes that load a family, each with the family's model class."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    autos = (AutoModelForImageTextToText, AutoModelForCausalLM)
    return [(auto, hf.model_classes(auto)[config]) for auto in autos if config in hf.model_classes(auto)]


def class_named(name: str) -> type | None:
    """The configuration or model class of a family by its name; None if there is none."""
    if name.startswith("EvoMoE"):
        for model_type, config_name in CONFIG_MAPPING_NAMES.items():
            if name == f"EvoMoE{config_name}":
                return config_class(model_type)
            if name.startswith(f"EvoMoE{config_name.removesuffix('Config')}For"):
                for auto, _ in _base_models(type(AutoConfig.for_model(model_type))):
                    sparse = hf.model_classes(auto)[config_class(model_type)]
                    if sparse.__name__ == name:
                        return sparse
    return None


def register() -> None:
    """Makes EvoMoE checkpoints known to ``AutoConfig``."""
    AutoConfig.register(MODEL_TYPE, AnyEvoMoEConfig, exist_ok=True)


register()
