"""Every part that trains has a part in the loss of every batch, though a batch may have no picture.

A projector that a batch without pictures leaves out would get no gradient. A stage that trains it alone would then have nothing to
go back through; of several processes, those whose batch has a picture would wait for the others for ever. Routers and experts see to
this themselves: they also run on no tokens.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput

from evomoe.data.conversations import Collator, ConversationDataset
from evomoe.support.errors import OptionError
from evomoe.training.trainable import PARTS_OF_PICTURES, names_in


def keep_in_every_batch(model: PreTrainedModel, dataset: ConversationDataset) -> None:
    """Lets a model that learns from pictures look at one in each training batch that has none; the loss keeps its value.

    Raises:
        OptionError: the parts that see pictures are all that trains, and the data have no picture.
    """
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    seeing = {name for part in PARTS_OF_PICTURES for name in names_in(model, part, ())}
    if not trained & seeing:
        return
    spare = _record_with_picture(dataset)
    if spare:
        model.register_forward_hook(Looking(model, spare), with_kwargs=True)
    elif trained <= seeing:
        raise OptionError("data", "no record has a picture, and the parts of the model that see pictures are all that trains.")


def _record_with_picture(dataset: ConversationDataset) -> dict[str, Tensor]:
    """A batch of the first good record that has a picture, without labels; empty if none has."""
    for number in range(len(dataset)):
        if dataset.records[number].images:
            item = dataset[number]  # of the next good one, where this is bad and may be left out
            if any(map(_is_of_pictures, item)):
                return Collator(dataset.processor)([{name: value for name, value in item.items() if name != "labels"}])
    return {}


class Looking:
    """After a training pass without pictures: looks at a spare one, and adds nothing of it to the loss.

    Args:
        spare: inputs of one record with a picture.
    """

    def __init__(self, model: PreTrainedModel, spare: Mapping[str, Tensor]) -> None:
        # Where pictures enter by attention, the layers that attend to them are left out too: the whole model must run.
        self._look: Any = getattr(model.base_model, "get_image_features", model.forward)
        known = inspect.signature(self._look).parameters
        self._spare = {name: value for name, value in spare.items() if name in known}

    def __call__(self, model: nn.Module, _: tuple[Any, ...], inputs: dict[str, Any], outputs: Any) -> Any:
        given = [name for name, value in inputs.items() if value is not None]
        if not model.training or "labels" not in given or any(map(_is_of_pictures, given)):
            return None
        own: Any = model
        spare = {
            name: value.to(own.device, own.dtype if value.is_floating_point() else value.dtype)
            for name, value in self._spare.items()
        }
        seen = self._look(**spare)
        leaves = tree_leaves(dict(seen) if isinstance(seen, ModelOutput) else seen)
        features = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
        outputs["loss"] = outputs["loss"] + 0 * sum(feature.float().sum() for feature in features)
        return outputs


def _is_of_pictures(name: str) -> bool:
    return "pixel" in name
