"""The experts that Stage II evolved.

Implements: Section 3.1 (experts of Stage III).
"""

from collections.abc import Mapping

import torch
from safetensors import safe_open
from torch import nn

from evomoe.conversion.expert_init.replicate import replicate
from evomoe.recipe.init_options import EvolvedOptions


def evolved(ffn: nn.Module, num_experts: int, layer: int, generator: torch.Generator, options: EvolvedOptions) -> list[nn.Module]:
    """The dense FFN (expert 1 of the paper) and the evolved experts.

    Raises:
        ValueError: the file does not fit the model.
    """
    options.check_fits([layer], num_experts)
    if isinstance(options.experts, Mapping):
        tensors, source = options.experts, "the tensors given"
    else:
        source, prefix = str(options.experts), f"layers.{layer}."
        with safe_open(options.experts, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118
    modules = replicate(ffn, num_experts, layer, generator)
    with torch.no_grad():
        for n, expert in enumerate(modules[1:], start=1):
            for name, parameter in expert.named_parameters():
                key = f"layers.{layer}.experts.{n}.{name}"
                if key not in tensors:
                    raise ValueError(
                        f"{source} has no tensor '{key}': it was made for other MoE layers, fewer experts or another model."
                    )
                if tensors[key].shape != parameter.shape:
                    raise ValueError(
                        f"{source}: '{key}' has shape {tuple(tensors[key].shape)}, this model needs {tuple(parameter.shape)}. "
                        "The experts belong to another model."
                    )
                parameter.copy_(tensors[key])
    return modules
