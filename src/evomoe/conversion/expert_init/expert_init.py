"""The contract of an expert initialiser."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from evomoe.recipe.row_options import InitOptions, read_options
from evomoe.support.errors import within


@dataclass(frozen=True)
class ExpertInit:
    """A row of ``INITS``.

    Attributes:
        make: ``make(ffn, num_experts, layer, generator, options)`` turns the dense FFN of one layer into its E experts, modules
            of the FFN's class. The FFN must not be changed; expert 0 may be the FFN itself, so that memory grows by the new
            experts only. All random numbers come from ``generator``, a CPU generator seeded once per model; layers draw in
            order.
        Options: the dataclass of its options.
        slices: whether each expert is an equal share of the FFN's inner units, not as wide as the FFN.
    """

    make: Callable[[nn.Module, int, int, torch.Generator, Any], list[nn.Module]]
    Options: type[InitOptions] = InitOptions
    slices: bool = False

    def read(self, values: Mapping[str, Any], name: str = "", given: bool = True) -> InitOptions:
        """Makes its options of plain values, and checks them; errors call the initialiser ``name``.

        Args:
            given: whether what Stage II gives is there already.

        Raises:
            OptionError: an option is wrong.
        """
        options = read_options(self.Options, values, f"init '{name or self.make.__name__}'")
        with within("init_options"):
            options.check(given)
        return options

    def __call__(
        self, ffn: nn.Module, num_experts: int, layer: int, generator: torch.Generator, **options: Any
    ) -> list[nn.Module]:
        """The experts of one layer; ``options`` are fields of ``Options``."""
        return self.make(ffn, num_experts, layer, generator, self.read(options))
