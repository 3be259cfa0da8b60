"""The experts that Stage II evolved.

Implements: Section 3.1 (experts of Stage III).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from evomoe.expert_init.replicate import replicate


def evolved(
    ffn: nn.Module,
    num_experts: int,
    layer: int,
    generator: torch.Generator,
    experts: str | Path | Mapping[str, Tensor] = "",
) -> list[nn.Module]:
    """The dense FFN (expert 1 of the paper) and the evolved experts.

    Args:
        experts: ``evolved_experts.safetensors`` as Stage II wrote it, or the tensors in it, named
            ``layers.{layer}.experts.{n}.{parameter}`` with n = 1 .. num_experts - 1.

    Raises:
        ValueError: no file given, or it does not fit the model.
    """
    if isinstance(experts, Mapping):
        tensors, source = experts, "the tensors given"
    else:
        from safetensors import safe_open

        check_experts_file(experts, [layer], num_experts)
        source, prefix = str(experts), f"layers.{layer}."
        with safe_open(experts, framework="pt") as file:
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


def check_experts_file(path: str | Path, moe_layers: Sequence[int], num_experts: int) -> None:
    """Makes sure, by its tensors' names alone, that a file of evolved experts is for these layers and so many experts.

    Raises:
        ValueError: it is not; the message names the file.
    """
    if not str(path) or not Path(path).is_file():
        got = f"; there is no {path}" if str(path) else ""
        raise ValueError(
            "--expert-init evolved needs the file that Stage II wrote, evolved_experts.safetensors: --init-options experts=FILE"
            f"{got}."
        )
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = [name.split(".") for name in file.keys()]  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}).") from error
    held = {(int(name[1]), int(name[3])) for name in names if [*name[0:3:2]] == ["layers", "experts"]}
    for layer in moe_layers:
        evolved_experts = sorted(n for of_layer, n in held if of_layer == layer)
        if evolved_experts != list(range(1, num_experts)):
            raise ValueError(
                f"{path} has {len(evolved_experts)} evolved experts for layer {layer}, but num_experts {num_experts} needs "
                f"{num_experts - 1}: it was made for other MoE layers, another number of experts or another model."
            )
