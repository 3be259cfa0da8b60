"""The options of the initialisers that a recipe must know of before torch is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from evomoe.recipe.evolved_file import check_evolved
from evomoe.recipe.row_options import InitOptions
from evomoe.support.errors import OptionError

if TYPE_CHECKING:
    from torch import nn


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
        if not isinstance(self.experts, str | Path | Mapping):
            raise OptionError("experts", f"name the file that Stage II wrote, not {self.experts!r}: `init_options=experts=FILE`.")
        if given and not isinstance(self.experts, Mapping) and (not str(self.experts) or not Path(self.experts).is_file()):
            got = f"there is no {self.experts}" if str(self.experts) else "none is named"
            raise OptionError(
                "experts", f"name the file that Stage II wrote, evolved_experts.safetensors; {got}: `init_options=experts=FILE`."
            )

    def check_fits(self, ffns: Mapping[int, "nn.Module"], num_experts: int) -> None:
        check_evolved(self.experts, ffns, num_experts)


INIT_OPTIONS: dict[str, type[InitOptions]] = {"evolved": EvolvedOptions}
"""Initialisers that need something of another stage."""


def option_from_stage2(expert_init: str) -> str:
    """The option of an initialiser that Stage II's file goes into; empty if it needs none, or is known only with torch."""
    return INIT_OPTIONS.get(expert_init, InitOptions).from_stage2
