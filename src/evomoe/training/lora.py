"""Low-rank adapters (LoRA) that train in the place of the weights of linear maps. They need peft.

When the stage is done they are merged into the weights, so that the next stage and every server find an ordinary model.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import nn
from transformers.modeling_utils import PreTrainedModel

from evomoe.model.block import EvoMoEBlock
from evomoe.support.errors import OptionError
from evomoe.support.files import write_tensors

_ADAPTER = "default"
"""What peft calls an adapter that has no name."""


class Adapters:
    """The adapters of a model; to make them freezes all else but the routers.

    Args:
        model: dense or sparse, whose weights to train are marked as such.
        rank: of the adapters.
        alpha: their outputs count alpha / rank times.

    Raises:
        OptionError: peft is not installed, or none of the weights to train is that of a linear map.
    """

    def __init__(self, model: PreTrainedModel, rank: int, alpha: int) -> None:
        try:
            from peft import LoraConfig
            from peft.tuners.lora import LoraModel
        except ImportError as error:
            raise OptionError("lora", "it needs peft: pip install 'evomoe[lora]'.") from error
        routers = [p for module in model.modules() if isinstance(module, EvoMoEBlock) for p in _of_router(module)]
        routers = [parameter for parameter in routers if parameter.requires_grad]
        targets = _linear_maps(model, {id(parameter) for parameter in routers})
        if not targets:
            raise OptionError("lora", "none of the weights that the stage trains is that of a linear map outside the routers.")
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, bias="none")
        self.config, self._tuner = config, LoraModel(model, config, _ADAPTER)
        for parameter in routers:
            parameter.requires_grad_(True)

    def save(self, folder: Path, base: str) -> None:
        """Writes the adapters in peft's format.

        Args:
            base: the model that they belong to.
        """
        from peft import get_peft_model_state_dict

        model: Any = self._tuner.model
        tensors = {
            f"base_model.model.{name}": value for name, value in get_peft_model_state_dict(model, adapter_name=_ADAPTER).items()
        }
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(
            folder / "adapter_model.safetensors", {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        )
        self.config.base_model_name_or_path = base
        self.config.inference_mode = True
        self.config.save_pretrained(str(folder))

    def merge(self) -> None:
        """Adds the adapters to the weights that they stand beside, and takes them out of the model."""
        self._tuner.merge_and_unload()


def _of_router(block: EvoMoEBlock) -> list[nn.Parameter]:
    gate = [] if block.shared_expert_gate is None else [*block.shared_expert_gate.parameters()]
    return [*block.router.parameters(), *gate]


def _linear_maps(model: PreTrainedModel, left_out: Collection[int]) -> list[str]:
    """The names of the linear maps whose weights train; the head, whose weights may be the embedding's, is none of them."""
    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module is not head
        and module.weight.requires_grad
        and id(module.weight) not in left_out
    ]
