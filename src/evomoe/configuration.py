"""What the network is: the MoE part of the configuration, which travels with the weights."""

from collections.abc import Sequence
from copy import copy
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from evomoe.aux_losses import AUX_LOSSES
from evomoe.expert_init import INITS
from evomoe.placement import moe_layers
from evomoe.recipe import MoEOptions
from evomoe.routers import GATES, ROUTERS

MODEL_TYPE = "evomoe"


@dataclass(frozen=True)
class MoEConfig(MoEOptions):
    """The mixture-of-experts part of a model's configuration, stored under ``evomoe`` in config.json.

    Attributes:
        base_model_type: transformers' name of the dense family, e.g. "llava".
        moe_layers: indices of the decoder layers whose FFN is a mixture.
        expert_init: where the experts came from, for the record.
    """

    base_model_type: str = ""
    moe_layers: list[int] = field(default_factory=list)
    expert_init: str = "replicate"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.moe_layers:
            raise ValueError("moe_layers is empty: choose at least one layer.")
        for option, name, table in (
            ("router", self.router, ROUTERS),
            ("gate", self.gate, GATES),
            ("expert_init", self.expert_init, INITS),
            *(("aux_losses", name, AUX_LOSSES) for name in self.aux_losses),
            ("aux_reduction", self.aux_reduction, ("mean", "sum")),
        ):
            if name not in table:
                raise ValueError(f"{option}: there is no '{name}'; choose from {', '.join(table)}.")

    @classmethod
    def for_model(cls, config: PreTrainedConfig, placement: str | Sequence[int], **fields) -> "MoEConfig":
        """The MoE part for a dense model's ``config``; ``placement`` as in ``evomoe.placement``."""
        layers = moe_layers(placement, config.get_text_config(decoder=True).num_hidden_layers)
        return cls(base_model_type=config.model_type, moe_layers=layers, **fields)


class EvoMoEConfig(PreTrainedConfig):
    """Configuration of any EvoMoE model: that of its dense family plus ``evomoe``.

    Every family gets a subclass of its own (see ``family_config_class``); this class is what ``AutoConfig`` finds first.
    """

    model_type = MODEL_TYPE
    evomoe: dict[str, Any] | None = None

    @property
    def moe(self) -> MoEConfig:
        """The MoE part, validated."""
        return MoEConfig(**(self.evomoe or {}))

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        if cls is not EvoMoEConfig:
            return super().from_dict(config_dict, **kwargs)
        base = (config_dict.get("evomoe") or {}).get("base_model_type")
        if base is None:
            raise ValueError("config.json has model_type 'evomoe' but no 'evomoe' part with a 'base_model_type'.")
        return family_config_class(base).from_dict(config_dict, **kwargs)


@cache
def family_config_class(base_model_type: str) -> type[EvoMoEConfig]:
    """The EvoMoE configuration class of a dense family, registered with transformers' auto classes.

    Raises:
        ValueError: this version of transformers does not know the family.
    """
    try:
        base = type(AutoConfig.for_model(base_model_type))
    except ValueError as error:
        import transformers

        raise ValueError(
            f"The model family '{base_model_type}' is unknown to transformers {transformers.__version__}; upgrade transformers."
        ) from error
    family = type(
        f"EvoMoE{base.__name__}",
        (EvoMoEConfig, base),
        {"model_type": MODEL_TYPE, "__module__": __name__, "__doc__": f"{base.__name__} with a mixture of experts."},
    )
    from evomoe.modeling import register_family  # the models need the configuration first

    register_family(base, family)
    return family


def sparse_config(dense: PreTrainedConfig, moe: MoEConfig) -> EvoMoEConfig:
    """The configuration of the sparse model made from a dense one; the dense configuration is left alone."""
    # A copy of the object rather than of its fields: transformers keeps unsaved state, such as the chosen attention, in it.
    sparse = copy(dense)
    sparse.__class__ = family_config_class(moe.base_model_type)
    sparse.evomoe, sparse.architectures = asdict(moe), None
    return sparse


def __getattr__(name: str):
    """Finds a family's configuration class by name, so that its instances can be pickled."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    for model_type, class_name in CONFIG_MAPPING_NAMES.items():
        if name == f"EvoMoE{class_name}":
            return family_config_class(model_type)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
