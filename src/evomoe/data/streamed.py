"""Conversations of a stream: its first records as any data are, checked before a run begins, and items of those that are handed out."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from evomoe.data.conversations import ConversationDataset
from evomoe.data.records import Record, read_record
from evomoe.data.stream import StreamedRow, StreamSource
from evomoe.data.turns import BadRecordError
from evomoe.recipe.options import PictureCheck

logger = logging.getLogger(__name__)


class StreamedDataset(ConversationDataset):
    """The first records of a stream. They stand for all where records are looked at before training or after it.

    Args:
        sources: of the stream.
        records: the first of each source.
        max_pixels, check_pictures: as for `load_records`.
        options: as for `ConversationDataset`.
    """

    def __init__(
        self,
        sources: Sequence[StreamSource],
        records: Sequence[Record],
        *options: Any,
        max_pixels: int,
        check_pictures: PictureCheck,
    ) -> None:
        super().__init__(records, *options)
        self.sources, self._checks = tuple(sources), (max_pixels, check_pictures)

    def item(self, row: StreamedRow) -> dict[str, torch.Tensor]:
        """The item of a row, which is checked as records are that are read before.

        Raises:
            BadRecordError: it is bad.
        """
        return self.encode(read_record(row.source, row.image_root, *self._checks))


class StreamedItems(Dataset[dict[str, torch.Tensor]]):
    """What a DataLoader makes batches of: as many items as a stage takes, asked for by the rows that its sampler hands out.

    Args:
        dataset: makes the items.
        count: how many a stage takes.
    """

    def __init__(self, dataset: StreamedDataset, count: int) -> None:
        self._dataset, self._count = dataset, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: StreamedRow) -> dict[str, torch.Tensor]:
        return self._dataset.item(index)

    def __getitems__(self, rows: Sequence[StreamedRow]) -> list[dict[str, torch.Tensor]]:
        """The items of a batch without those of bad records, if these may be left out; one of the first records if all are bad."""
        items = []
        for row in rows:
            try:
                items.append(self[row])
            except BadRecordError as error:
                if self._dataset.on_bad_record == "stop":
                    raise
                logger.warning("left out of its batch: %s", error)
        return items or [self._dataset[rows[0].source.first % len(self._dataset)]]
