"""The experts that Stage II evolved.

Implements: Section 3.1 (experts of Stage III).
"""

from collections.abc import Mapping

import torch
from safetensors import safe_open
from torch import nn

from evomoe.conversion.expert_init.replicate import replicate
from evomoe.recipe.evolved_file import check_evolved
from evomoe.recipe.init_options import EvolvedOptions


def evolved(ffn: nn.Module, num_experts: int, layer: int, generator: torch.Generator, options: EvolvedOptions) -> list[nn.Module]:
    """The dense FFN (expert 1 of the paper) and the evolved experts.

    Raises:
        ValueError: the file does not fit the model.
    """
    check_evolved(options.experts, {layer: ffn}, num_experts, whole=False)
    if isinstance(options.experts, Mapping):
        tensors = options.experts
    else:
        prefix = f"layers.{layer}."
        with safe_open(options.experts, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118
    modules = replicate(ffn, num_experts, layer, generator)
    with torch.no_grad():
        for n, expert in enumerate(modules[1:], start=1):
            for name, parameter in expert.named_parameters():
                parameter.copy_(tensors[f"layers.{layer}.experts.{n}.{name}"])
    return modules
