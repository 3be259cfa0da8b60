"""Every part that trains has a part in the loss of every batch, though a batch may have no picture.

A projector that a batch without pictures leaves out would get no gradient. A stage that trains it alone would then have nothing to
go back through; of several processes, those whose batch has a picture would wait for the others for ever. Routers and experts see to
this themselves: they also run on no tokens.

Where each process holds only a part of the weights (FSDP2, ZeRO-3), all must also run what does not train: each module's weights are
gathered from all processes before it runs.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import TrainerCallback
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput

from evomoe.data.conversations import Collator, ConversationDataset
from evomoe.data.streamed import StreamedDataset
from evomoe.support.device import placed
from evomoe.support.errors import OptionError
from evomoe.support.text import counted
from evomoe.training.trainable import PARTS_OF_PICTURES, names_in


def spare_picture(model: PreTrainedModel, dataset: ConversationDataset, weights_are_shared: bool) -> dict[str, Tensor]:
    """What the model is to look at in training batches without a picture: a record that has one. Empty if it need not look.

    Args:
        model: what trains in it is marked.
        dataset: what it trains on.
        weights_are_shared: whether each process holds only a part of them.

    Raises:
        OptionError: the parts that see pictures are all that trains, and the data have no picture; or those among the first records of
            a stream have none, and processes that share weights may not wait for one.
    """
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    seeing = {name for part in PARTS_OF_PICTURES for name in names_in(model, part, ())}
    if not (seeing if weights_are_shared else trained & seeing):
        return {}
    spare = _record_with_picture(dataset)
    if not spare and isinstance(dataset, StreamedDataset) and (weights_are_shared or trained <= seeing):
        raise OptionError(
            "data",
            f"none of the first {counted(len(dataset), 'record')} of the stream has a picture, which training needs from its begin. Let "
            "the first shard begin with one.",
        )
    if not spare and trained <= seeing:
        raise OptionError("data", "no record has a picture, and the parts of the model that see pictures are all that trains.")
    return spare


def _record_with_picture(dataset: ConversationDataset) -> dict[str, Tensor]:
    """A batch of the first good record that has a picture, without labels; empty if none has."""
    for number in range(len(dataset)):
        if dataset.records[number].images:
            item = dataset[number]  # of the next good one, where this is bad and may be left out
            if any(map(_is_of_pictures, item)):
                return Collator(dataset.processor)([{name: value for name, value in item.items() if name != "labels"}])
    return {}


class SpareCallback(TrainerCallback):
    """Lets the model look at a spare picture from the begin of training on.

    Not before: what shares the model out has put its own hooks on the embedding by then, and comes to its end before the look.

    Args:
        spare: inputs of one record with a picture.
    """

    def __init__(self, spare: Mapping[str, Tensor]) -> None:
        self.spare = spare

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        model = extract_model_from_parallel(model)
        assert isinstance(model, PreTrainedModel)
        Looking(model, self.spare)


class Looking:
    """Lets a model look at a spare picture in each training pass that has none, and adds nothing of it to the words' embeddings.

    It looks where the model would look at pictures of its own, after it has embedded the words: processes that share a sharded model
    must come to its parts in the same order, forward and backward.

    Args:
        model: that trains.
        spare: inputs of one record with a picture.
    """

    def __init__(self, model: PreTrainedModel, spare: Mapping[str, Tensor]) -> None:
        known = inspect.signature(_look(model)).parameters
        self._spare = {name: value for name, value in spare.items() if name in known}
        self._looking_in: PreTrainedModel | None = None
        model.register_forward_pre_hook(self._begin, with_kwargs=True)
        model.get_input_embeddings().register_forward_hook(self._embedded)

    def _begin(self, model: Any, _: tuple[Any, ...], inputs: Mapping[str, Any]) -> None:
        given = [name for name, value in inputs.items() if value is not None]
        looks = model.training and "labels" in given and not any(map(_is_of_pictures, given))
        self._looking_in = model if looks else None

    def _embedded(self, _: nn.Module, __: tuple[Any, ...], embedded_BSD: Tensor) -> Tensor:
        if self._looking_in is None:
            return embedded_BSD
        model, self._looking_in = self._looking_in, None
        seen = _look(model)(**placed(self._spare, model))
        leaves = tree_leaves(dict(seen) if isinstance(seen, ModelOutput) else seen)
        features = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
        if not features:
            return embedded_BSD
        nothing = 0 * torch.stack([feature.float().sum() for feature in features]).sum()
        return embedded_BSD + nothing.to(embedded_BSD.dtype)


def _look(model: PreTrainedModel) -> Any:
    """What sees pictures. Where they enter by attention, layers of the decoder attend to them, and the whole model must run."""
    return getattr(model.base_model, "get_image_features", model.forward)


def _is_of_pictures(name: str) -> bool:
    return "pixel" in name
