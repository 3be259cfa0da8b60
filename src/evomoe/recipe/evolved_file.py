"""A file of evolved experts is whole and belongs to the model, or it is refused before anything starts."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_OTHERS = "it was made for other MoE layers, another number of experts or another model."


def check_evolved(
    experts: str | Path | Mapping[str, Any], ffns: Mapping[int, "nn.Module"], num_experts: int, whole: bool = True
) -> None:
    """Compares names, shapes, types and, of a whole file, values with what the model needs.

    Args:
        experts: the file, or the tensors in it.
        ffns: the FFN of each MoE layer, by layer; it may be without weights.
        whole: there is nothing for other layers, and all values are finite.

    Raises:
        ValueError: it does not fit; the message names file and tensor.
    """
    source = "the tensors given" if isinstance(experts, Mapping) else str(experts)
    wanted = {
        f"layers.{layer}.experts.{n}.{name}": tuple(parameter.shape)
        for layer, ffn in ffns.items()
        for n in range(1, num_experts)
        for name, parameter in ffn.named_parameters()
    }
    with _opened(experts, source) as tensors:
        held = {tuple(name.split(".")[1:4:2]) for name in tensors if name.startswith("layers.") and ".experts." in name}
        for layer in ffns:
            count = sum(of_layer == str(layer) for of_layer, _ in held)
            if count not in (0, num_experts - 1):
                raise ValueError(
                    f"{source} has {count} evolved experts for layer {layer}, but num_experts {num_experts} needs {num_experts - 1}: "
                    f"{_OTHERS}"
                )
        for name in wanted:
            if name not in tensors:
                raise ValueError(f"{source} has no tensor '{name}': {_OTHERS}")
        for name in tensors if whole else ():
            if name not in wanted:
                raise ValueError(f"{source} has '{name}' too, which has no place in this model: {_OTHERS}")
        for name, shape in wanted.items():
            tensor = tensors[name]
            if tuple(tensor.shape) != shape:
                raise ValueError(
                    f"{source}: '{name}' has shape {tuple(tensor.shape)}, this model needs {shape}. The experts belong to another model."
                )
            if not tensor.is_floating_point():
                raise ValueError(f"{source}: '{name}' has values of type {tensor.dtype}; weights are floating-point numbers.")
            if whole and not bool(tensor.float().isfinite().all()):  # in float64 it may hold more than a model can
                raise ValueError(f"{source}: '{name}' has values that are not finite (NaN or infinity) in float32.")


class _File(Mapping[str, Any]):
    """The tensors of an open file, each read when it is asked for."""

    def __init__(self, file: Any) -> None:
        self.file, self.names = file, dict.fromkeys(file.keys())

    def __getitem__(self, name: str) -> Any:
        return self.file.get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@contextmanager
def _opened(experts: str | Path | Mapping[str, Any], source: str) -> Iterator[Mapping[str, Any]]:
    if isinstance(experts, Mapping):
        yield experts
        return
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(experts, framework="pt") as file:
            yield _File(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{source} cannot be read as safetensors ({error}).") from error
