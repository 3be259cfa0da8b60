"""What the network is: the MoE part of the configuration, which travels with the weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.configuration_utils import PreTrainedConfig

from evomoe.aux_losses import AUX_LOSSES, NEEDS
from evomoe.expert_init import INITS
from evomoe.options import check_options
from evomoe.placement import moe_layers, parse_placement
from evomoe.recipe import MoEOptions
from evomoe.routers import GATES, ROUTERS

MODEL_TYPE = "evomoe"


@dataclass(frozen=True)
class MoEConfig(MoEOptions):
    """The mixture-of-experts part of a model's configuration, stored under ``evomoe`` in config.json.

    Attributes:
        base_model_type: transformers' name of the dense family, e.g. "llava".
        moe_layers: indices of the decoder layers whose FFN is a mixture.
        expert_init: where the experts came from; those of "partition" are slices of the FFN, all others as wide as it is.
        attached: the model was sparse before, and its experts are its own.
    """

    base_model_type: str = ""
    moe_layers: list[int] = field(default_factory=list)
    expert_init: str = "replicate"
    attached: bool = False

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
                own = "" if option == "aux_reduction" else " If it is your own, import the file that registers it first."
                raise ValueError(f"{option}: there is no '{name}'; choose from {', '.join(table)}.{own}")
        for name in self.aux_losses:
            able = [router for router, kind in ROUTERS.items() if NEEDS.get(name) in (None, *getattr(kind, "gives", ()))]
            if self.router not in able:
                raise ValueError(
                    f"--aux-losses: '{name}' is for router {', '.join(able)}, not for '{self.router}'; leave it out."
                )

    @property
    def origin(self) -> str:
        """Where the experts came from, in words."""
        return "the base model's own" if self.attached else self.expert_init

    @classmethod
    def for_model(cls, config: PreTrainedConfig, placement: str | Sequence[int], **fields) -> "MoEConfig":
        """The MoE part for a dense model's ``config``; ``placement`` as in ``evomoe.placement``."""
        text = config.get_text_config(decoder=True)
        moe = cls(base_model_type=config.model_type, moe_layers=moe_layers(placement, text.num_hidden_layers), **fields)
        check_options("router", moe.router, ROUTERS[moe.router], moe.router_options)
        try:
            with torch.device("meta"):
                ROUTERS[moe.router](text.hidden_size, moe.num_experts, **moe.router_options)
        except TypeError as error:
            raise ValueError(f"router_options: router '{moe.router}' does not take {moe.router_options} ({error}).") from error
        return moe


class EvoMoEConfig(PreTrainedConfig):
    """Configuration of any EvoMoE model: that of its dense family plus ``evomoe``.

    Every family gets a subclass of its own, see ``evomoe.families``.
    """

    model_type = MODEL_TYPE
    evomoe: dict[str, Any] | None = None

    @property
    def moe(self) -> MoEConfig:
        """The MoE part, validated."""
        return MoEConfig(**(self.evomoe or {}))


def contradictions(config: EvoMoEConfig, options: MoEOptions, placement: str) -> list[str]:
    """The options that say something else than an EvoMoE's own configuration does; defaults say nothing."""
    default, own = MoEOptions(), config.moe
    wrong = [name for name, value in vars(options).items() if value not in (getattr(default, name), getattr(own, name))]
    layers = moe_layers(parse_placement(placement), config.get_text_config(decoder=True).num_hidden_layers)
    return wrong + ["moe_layers"] * (placement != "alternating" and layers != own.moe_layers)
