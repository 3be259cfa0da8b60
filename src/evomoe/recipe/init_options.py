"""The options of the initialisers that a recipe must know of before torch is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from evomoe.recipe.row_options import InitOptions
from evomoe.support.errors import OptionError


@dataclass(frozen=True)
class EvolvedOptions(InitOptions):
    """Where the evolved experts are.

    Attributes:
        experts: ``evolved_experts.safetensors`` as Stage II wrote it; in Python also the tensors in it, named
            ``layers.{layer}.experts.{n}.{parameter}`` with n = 1 .. num_experts - 1.
    """

    experts: str | Path | Mapping[str, Any] = ""

    from_stage2: ClassVar[str] = "experts"

    def check(self, given: bool = True) -> None:
        if given and not isinstance(self.experts, Mapping) and (not str(self.experts) or not Path(self.experts).is_file()):
            got = f"there is no {self.experts}" if str(self.experts) else "none is named"
            raise OptionError(
                "experts", f"name the file that Stage II wrote, evolved_experts.safetensors; {got}: `init_options=experts=FILE`."
            )

    def check_fits(self, moe_layers: Sequence[int], num_experts: int) -> None:
        """Makes sure, by its tensors' names alone, that a file of evolved experts is for these layers and so many experts.

        Raises:
            ValueError: it is not; the message names the file.
        """
        if isinstance(self.experts, Mapping):
            return
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.experts, framework="numpy") as file:
                names = [name.split(".") for name in file.keys()]  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{self.experts} cannot be read as safetensors ({error}).") from error
        held = {(int(name[1]), int(name[3])) for name in names if [*name[0:3:2]] == ["layers", "experts"]}
        for layer in moe_layers:
            evolved_experts = sorted(n for of_layer, n in held if of_layer == layer)
            if evolved_experts != list(range(1, num_experts)):
                raise ValueError(
                    f"{self.experts} has {len(evolved_experts)} evolved experts for layer {layer}, but num_experts {num_experts} "
                    f"needs {num_experts - 1}: it was made for other MoE layers, another number of experts or another model."
                )


INIT_OPTIONS: dict[str, type[InitOptions]] = {"evolved": EvolvedOptions}
"""Initialisers that need something of another stage."""


def option_from_stage2(expert_init: str) -> str:
    """The option of an initialiser that Stage II's file goes into; empty if it needs none, or is known only with torch."""
    return INIT_OPTIONS.get(expert_init, InitOptions).from_stage2
