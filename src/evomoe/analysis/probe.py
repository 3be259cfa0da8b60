"""The records that a sparse model is analyzed on: some of a dataset, labelled, in batches."""

from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

from evomoe.analysis.image_swap import Item, swap_pictures
from evomoe.data.conversations import Collator, ConversationDataset
from evomoe.support.errors import OptionError
from evomoe.support.text import counted

Batch = dict[str, Tensor]


class Probe:
    """Some records of a dataset, evenly spaced; they stay in memory once they are read.

    Args:
        dataset: the records.
        data: what they are called.
        image_tokens: ids of the model's image tokens.
        records: how many to take, at most.
        batch_size: records per forward pass.

    Attributes:
        name: says what was looked at, for reports.
    """

    def __init__(
        self, dataset: ConversationDataset, data: str, image_tokens: Sequence[int], records: int = 64, batch_size: int = 8
    ) -> None:
        self._dataset, self._image_tokens, self._batch_size = dataset, image_tokens, batch_size
        self._collate, total = Collator(dataset.processor), len(dataset)
        count = min(records, total)
        self._chosen = [i * total // count for i in range(count)]
        self.name = f"{'all' if count == total else f'{count:,} of the'} {counted(total, 'record')} of {data}" + (
            "" if count == total else ", evenly spaced"
        )

    def check_pictures(self) -> None:
        """Raises OptionError if no record has an image token, so that there is one modality only."""
        if not any(torch.isin(item["input_ids"], torch.tensor(self._image_tokens)).any() for item in self.items):
            raise OptionError("data", f"there is no picture in {self.name}; name data with pictures, or raise `records`.")

    @cached_property
    def items(self) -> list[Item]:
        """The records' tensors."""
        return [self._dataset[i] for i in self._chosen]

    def batches(self, model: PreTrainedModel) -> Iterator[Batch]:
        """Inputs for the model, with labels."""
        return self.collated(self.items, model)

    def unlabelled(self, model: PreTrainedModel) -> Iterator[Batch]:
        """The same inputs without labels."""
        return self.collated(self.items, model, labels=False)

    def swapped(self, model: PreTrainedModel) -> Iterator[tuple[Batch, Batch]]:
        """Inputs without labels, and the same with other pictures, of the records whose picture can be swapped."""
        pairs = swap_pictures(self.items, self._image_tokens)
        own, other = ([pair[side] for pair in pairs] for side in (0, 1))
        return zip(self.collated(own, model, labels=False), self.collated(other, model, labels=False), strict=True)

    def with_one_picture(self, most: int) -> Iterator[tuple[Item, Image.Image]]:
        """The first records that have one picture, with that picture as the processor is given it."""
        found = 0
        for item, i in zip(self.items, self._chosen, strict=True):
            if found < most and len(pictures := self._dataset.pictures(i)) == 1:
                found += 1
                yield item, pictures[0]

    def collated(self, items: Sequence[Item], model: PreTrainedModel, labels: bool = True) -> Iterator[Batch]:
        for start in range(0, len(items), self._batch_size):
            batch = self._collate(items[start : start + self._batch_size])
            yield {
                name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
                for name, value in batch.items()
                if labels or name != "labels"
            }
