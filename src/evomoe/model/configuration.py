"""What the network is: the MoE part of the configuration, which travels with the weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from evomoe.model.aux_losses import AUX_LOSSES
from evomoe.model.routers import ROUTERS, Router
from evomoe.model.routers.checked_logits import make_without_weights
from evomoe.model.routing import GATES
from evomoe.recipe.options import MoEOptions
from evomoe.recipe.placement import moe_layers
from evomoe.recipe.value_types import check_names
from evomoe.support.errors import OptionError
from evomoe.support.needs import needs_of
from evomoe.support.rows import check_row

MODEL_TYPE = "evomoe"


@dataclass(frozen=True)
class MoEConfig(MoEOptions):
    """The mixture-of-experts part of a model's configuration, stored under ``evomoe`` in config.json.

    Attributes:
        base_model_type: transformers' name of the dense family, e.g. "llava".
        moe_layers: indices of the decoder layers whose FFN is a mixture.
        expert_init: where the experts came from, for people; the network does not depend on it.
        expert_share: an expert has 1 / expert_share of the dense FFN's inner units.
        attached: the model was sparse before, and its experts are its own.
    """

    base_model_type: str = ""
    moe_layers: list[int] = field(default_factory=list)
    expert_init: str = "replicate"
    expert_share: int = 1
    attached: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.moe_layers:
            raise OptionError("moe_layers", "there is none; choose at least one layer.")
        check_row("router", self.router, ROUTERS, derived_from=Router)
        check_row("gate", self.gate, GATES)
        for name in self.aux_losses:
            check_row("aux_losses", name, AUX_LOSSES)
            needed = set(needs_of(AUX_LOSSES[name])) - {"experts"}
            able = [router for router, kind in ROUTERS.items() if needed <= set(getattr(kind, "gives", ()))]
            if self.router not in able:
                raise OptionError(
                    "aux_losses", f"'{name}' is for router {', '.join(able)}, not for '{self.router}'; leave it out."
                )

    @classmethod
    def stored(cls, values: dict[str, Any]) -> "MoEConfig":
        """Of what config.json holds. Before ``expert_share`` was written down, "partition" alone made narrower experts."""
        if "expert_share" not in values and values.get("expert_init") == "partition":
            values = values | {"expert_share": values["num_experts"]}
        check_names(values, cls.__dataclass_fields__, "config.json, which a newer version may have written,")
        return cls(**values)

    @property
    def origin(self) -> str:
        """Where the experts came from, in words."""
        return "the base model's own" if self.attached else self.expert_init

    @classmethod
    def for_model(cls, config: PreTrainedConfig, placement: str | Sequence[int], **fields) -> "MoEConfig":
        """The MoE part for a dense model's ``config``; ``placement`` as in ``evomoe.recipe.placement``."""
        check_names(fields, cls.__dataclass_fields__, "A mixture")
        text = config.get_text_config(decoder=True)
        moe = cls(base_model_type=config.model_type, moe_layers=moe_layers(placement, text.num_hidden_layers), **fields)
        router = ROUTERS[moe.router]
        router.read(moe.router_options, moe.num_experts, moe.router)
        make_without_weights(router, moe.router, text.hidden_size, moe.num_experts, moe.router_options)
        return moe


class EvoMoEConfig(PreTrainedConfig):
    """Configuration of any EvoMoE model: that of its dense family plus ``evomoe``.

    Every family gets a subclass of its own, see ``evomoe.model.families``.
    """

    model_type = MODEL_TYPE
    evomoe: dict[str, Any] | None = None

    @property
    def moe(self) -> MoEConfig:
        """The MoE part, validated."""
        return MoEConfig.stored(self.evomoe or {})
