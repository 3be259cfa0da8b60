"""Conversations as tensors: one item per record with labels on the answers alone, and batches of items."""

import itertools
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from PIL import Image
from torch.utils.data import Dataset, Subset
from transformers import ProcessorMixin

from evomoe.data.chat_template import ChatTemplate, LabelMismatchError
from evomoe.data.images import Shape, open_rgb
from evomoe.data.kept_survey import kept_survey
from evomoe.data.labels import IGNORED, place_labels
from evomoe.data.messages import messages_of
from evomoe.data.mix import MixedRecords, Share
from evomoe.data.records import BadRecordError, Record, bad_summary
from evomoe.data.survey import Surveyed, cut_fault, read_pictures, read_videos
from evomoe.data.videos import VideoReader, options_of
from evomoe.recipe.options import VIDEO_FRAMES, ImageAspect, OnBadRecord, check_on_bad_record
from evomoe.support.errors import OptionError, panics_as_errors
from evomoe.support.processor import Processor, beyond_rows, cannot_process, tokenizer_of

__all__ = ["Collator", "ConversationDataset", "LabelMismatchError", "messages_of"]

logger = logging.getLogger(__name__)

TOKEN_KEYS = ("input_ids", "attention_mask", "labels", "token_type_ids", "mm_token_type_ids")


_TRIED_FIRST = 16
"""Records of which the template must suit one, where bad ones are skipped."""


class ConversationDataset(Dataset[dict[str, torch.Tensor]]):
    """Records as token ids, pixels and labels, made by the model's own processor and chat template.

    Pictures are decoded in the process that asks for the item, so in the workers of a DataLoader. Labels lie on the
    answers and the end-of-turn text after them; they are checked against the template token by token.

    Args:
        records: What `load_records` returns, or several of these as `MixedRecords`; their `skipped` messages are taken over.
        processor: A transformers processor with a fast tokenizer, or such a tokenizer alone for text.
        max_length: The most tokens of an item, image tokens included; the rest is cut. A cut through a picture, or
            one that leaves no label, makes the record bad.
        on_bad_record: "stop" raises on a bad record; "skip" warns once and gives the next good record instead.
        image_aspect: What becomes of the pictures' shape.
        keep: Hold the items in memory once they are made, for several runs in turn.
        template_options: Arguments of the chat template, such as enable_thinking.
        workers: The processes that `check` and `lengths` take; 0 takes none but this one.
        video_frames: How many frames are taken of each video.

    Attributes:
        skipped: The message of every record left out.
        notes: What is worth knowing of how these records are rendered.
        end_id: The token that ends an answer; None if the tokenizer has none.
        shares: The sources' parts of a pass, in the order of the records; a single one without a mix.

    Raises:
        LabelMismatchError: The chat template suits none of the first records, so it will suit none.
        OptionError: An option has an unknown value.
        ValueError: The processor has no chat template or no fast tokenizer.
    """

    def __init__(
        self,
        records: Sequence[Record],
        processor: Processor,
        max_length: int = 2048,
        on_bad_record: OnBadRecord = "stop",
        image_aspect: ImageAspect = "auto",
        keep: bool = False,
        template_options: Mapping[str, Any] | None = None,
        workers: int = 0,
        video_frames: int = VIDEO_FRAMES,
    ) -> None:
        check_on_bad_record(on_bad_record)
        if max_length < 1:
            raise OptionError("max_length", f"{max_length} must be at least 1.")
        if len(records) == 0:
            raise OptionError("records", "there are none.")
        self.records: Any = records
        self.shares = self._shares(range(len(records)))
        self.skipped: list[str] = list(getattr(records, "skipped", ()))
        self.processor = processor
        self.max_length = max_length
        self.on_bad_record = on_bad_record
        self._workers = workers
        self._shape, self._reader = Shape(processor, image_aspect), VideoReader(processor, video_frames)
        self._template = ChatTemplate(processor, template_options)
        self.notes = [*getattr(records, "notes", ()), *self._template.notes()]
        self.end_id = self._template.end_id
        self._tokenizer = self._template.tokenizer
        if not self._tokenizer.is_fast:
            raise ValueError(f"{type(self._tokenizer).__name__} is a slow tokenizer; labels need a fast one")
        self._warned: set[int] = set()
        self._kept: dict[int, dict[str, torch.Tensor]] | None = {} if keep else None
        self._check_template()

    def _check_template(self) -> None:
        """Refuses a template that suits none of the first records, before all are looked at."""
        mismatch: LabelMismatchError | None = None
        for number in range(min(_TRIED_FIRST, len(self)) if self.on_bad_record == "skip" else 1):
            try:
                self._template.render(self.records[number])
                return
            except BadRecordError as error:
                if self.on_bad_record == "stop":
                    raise
                mismatch = mismatch or (error if isinstance(error, LabelMismatchError) else None)
        if mismatch:
            raise mismatch

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Makes one item.

        Returns:
            input_ids, attention_mask and labels (S,), whatever else the processor makes per token (S,), and its
            vision tensors as they are.

        Raises:
            BadRecordError: The record is bad under "stop", or every record is under "skip".
        """
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        if self._kept is None:
            return self._item(index)
        if (number := index % len(self)) not in self._kept:
            self._kept[number] = self._item(number)
        return dict(self._kept[number])

    def _item(self, index: int) -> dict[str, torch.Tensor]:
        for step in range(len(self)):
            number = (index + step) % len(self)
            try:
                return self.encode(self.records[number])
            except BadRecordError as error:
                if self.on_bad_record == "stop":
                    raise
                if number not in self._warned:
                    self._warned.add(number)
                    logger.warning("skipped, the next good record takes its place: %s", error)
        raise BadRecordError("there is no good record: each of them is bad; see the warnings above")

    def pictures(self, index: int) -> list[Image.Image]:
        """An item's pictures, as the processor is given them."""
        record = self.records[index]
        return read_pictures(record, lambda image: self._shape.fit(open_rgb(image)))

    def check(self) -> None:
        """Looks at every record, without decoding pictures: it must suit the template, its labels and its cut.

        Under "skip", bad records are left out from now on, and `skipped` lists them.

        Raises:
            BadRecordError: There are bad records under "stop", or no good one at all.
        """
        faults = {number: one.fault for number, one in enumerate(self._surveyed) if one.fault is not None}
        if not faults:
            return
        if self.on_bad_record == "stop" or len(faults) == len(self):
            raise BadRecordError(
                bad_summary(f"max_length {self.max_length}, {self._template.owner}", list(faults.values()), len(self))
            )
        good = [number for number in range(len(self)) if number not in faults]
        self.skipped += faults.values()
        self.shares = self._shares(good)
        self._surveyed = [self._surveyed[number] for number in good]
        self.records = Subset(self.records, good)
        self._kept = None if self._kept is None else {}

    @property
    def per_pass(self) -> int:
        """How many records a pass takes; one that it takes twice counts twice."""
        return sum(share.taken for share in self.shares)

    @property
    def cut(self) -> int:
        """How many records are longer than max_length, by the lengths that `lengths` finds."""
        return sum(one.length > self.max_length for one in self._surveyed)

    def lengths(self) -> list[int]:
        """The tokens of every item, image tokens included, for sampling by length; see `survey` for how exact they are.

        The Trainer takes lengths only from a column of a `datasets.Dataset`; from any other dataset it would load
        every item, pictures and all. So they must be handed to its sampler.
        """
        return [min(one.length, self.max_length) for one in self._surveyed]

    @cached_property
    def _surveyed(self) -> list[Surveyed]:
        parts = self.records.parts if isinstance(self.records, MixedRecords) else [self.records]
        options = (self.processor, self._template, self._shape, self.max_length, self._reader, self._workers)
        found = (kept_survey(part, *options) for part in parts)
        return [*itertools.chain.from_iterable(found)]

    def _shares(self, good: Sequence[int]) -> list[Share]:
        """The sources' parts of a pass over the good records."""
        if not isinstance(self.records, MixedRecords):
            return [Share(getattr(self.records, "name", ""), 1.0, len(good))]
        counts = Counter(map(self.records.source_of, good))
        parts = zip(self.records.parts, self.records.weights, strict=True)
        return [Share(part.name, weight, counts[source]) for source, (part, weight) in enumerate(parts)]

    def encode(self, record: Record) -> dict[str, torch.Tensor]:
        """The item of a record.

        Raises:
            BadRecordError: The record is bad, or a part of the processor fails at it, in whatever way.
        """
        try:
            with panics_as_errors():
                return self._encoded(record)
        except BadRecordError:
            raise
        except Exception as error:
            raise BadRecordError(cannot_process(record.where, self.processor, error)) from error

    def _encoded(self, record: Record) -> dict[str, torch.Tensor]:
        rendered = self._template.render(record)
        batch = self._process(record, rendered.text)
        replacements = batch.pop("text_replacement_offsets", [None if record.images or record.videos else ()])[0]
        ids = batch["input_ids"][0].tolist()
        if beyond := beyond_rows(self._tokenizer, ids):
            raise BadRecordError(f"{record.where}: {beyond}")
        placed = place_labels(record, rendered, ids, replacements, self._tokenizer, self._template.placeholders(record))
        self._check_cut(record, placed.labels, placed.of_image)
        item = {key: value[0] if key in TOKEN_KEYS else value for key, value in batch.items()}
        item["labels"] = torch.tensor(placed.labels)
        return {key: value[: self.max_length] if key in TOKEN_KEYS else value for key, value in item.items()}

    def _process(self, record: Record, text: str) -> Any:
        options: dict[str, Any] = self._template.special_tokens(text)
        if record.images:
            options["images"] = [read_pictures(record, lambda image: self._shape.fit(open_rgb(image)))]
        if record.videos:
            options |= options_of(read_videos(record, self._reader.read))
        kinds = ["image"] * bool(record.images) + ["video"] * bool(record.videos)
        if kinds and all(_reports_replacements(self.processor, kind) for kind in kinds):
            options["return_text_replacement_offsets"] = True
        return self.processor(text=[text], return_tensors="pt", **options)

    def _check_cut(self, record: Record, labels: list[int], of_image: list[bool]) -> None:
        first_label = next(i for i, label in enumerate(labels) if label != IGNORED)
        pictures_end = max((i + 1 for i, is_image in enumerate(of_image) if is_image), default=0)
        fault = cut_fault(record.where, len(labels), first_label, pictures_end, self.max_length)
        if fault:
            raise BadRecordError(fault)


class Collator:
    """Batches items of `ConversationDataset`, with any number of pictures each.

    Per-token tensors are padded. Vision tensors keep the first dimension that the processor gave them and are joined
    along it; where other dimensions differ (pictures per record in Idefics3, tiles per picture in LLaVA-NeXT) they are
    padded with zeros at the end, as those processors do within a batch.

    Args:
        processor: The processor or tokenizer of the items; gives the padding token.
        padding_side: "right" or "left".
        pad_to_multiple_of: Pads further to a multiple of so many tokens.
        packing: Puts several items into a row: "rows" of few tokens and little padding, "one row" for all.

    Raises:
        OptionError: padding_side is neither "right" nor "left", or not "right" with packing.
    """

    def __init__(
        self,
        processor: Processor,
        padding_side: Literal["right", "left"] = "right",
        pad_to_multiple_of: int | None = None,
        packing: Literal["", "rows", "one row"] = "",
    ) -> None:
        if padding_side not in ("right", "left"):
            raise OptionError("padding_side", f"{padding_side!r} is neither 'right' nor 'left'.")
        if packing and padding_side == "left":
            raise OptionError("padding_side", "a packed row is padded at its end; choose 'right'.")
        tokenizer = tokenizer_of(processor)
        # The attention mask hides the padding, so any id will do for a tokenizer that has none of its own.
        padding_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
        self._padding = {"input_ids": padding_id, "labels": IGNORED}
        self._left = padding_side == "left"
        self._multiple = pad_to_multiple_of or 1
        self._packing = packing

    def __call__(self, items: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Returns one batch: per-token tensors (B, S), vision tensors joined along their first dimension.

        With packing there are fewer rows, and ``position_ids`` (B, S), which start anew with each item and with the padding.
        """
        if not self._packing:
            return self._padded(items)
        lengths = [len(item["input_ids"]) for item in items]
        rows = short_rows(lengths) if self._packing == "rows" else [[*range(len(lengths))]]
        batch = self._padded([_joined([items[number] for number in row]) for row in rows])
        width = batch["input_ids"].shape[1]
        batch["position_ids"] = torch.stack([_positions([lengths[number] for number in row], width) for row in rows])
        return batch

    def _padded(self, items: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        longest = max(len(item["input_ids"]) for item in items)
        width = -(-longest // self._multiple) * self._multiple
        batch: dict[str, torch.Tensor] = {}
        for key in dict.fromkeys(key for item in items for key in item):
            if key in TOKEN_KEYS:
                rows = [_of_tokens(key, item) for item in items]
                batch[key] = torch.stack([self._pad(row, width, self._padding.get(key, 0)) for row in rows])
            else:
                batch[key] = _join(key, [item[key] for item in items if key in item])
        return batch

    def _pad(self, row: torch.Tensor, width: int, value: int) -> torch.Tensor:
        missing = width - len(row)
        return torch.nn.functional.pad(row, (missing, 0) if self._left else (0, missing), value=value)


_TRIED = 16
"""Lengths of rows that are tried for a batch."""
_WIDE = 6000
"""Tokens of a row for which attention costs as much as all else in a model of a thousand units; half as many in one of half as many."""


def short_rows(lengths: Sequence[int]) -> list[list[int]]:
    """Which items share a row, so that a step is short: little padding, and rows not so long that attention costs more than that."""
    longest, total = max(lengths), sum(lengths)
    fewest = -(-total // longest)
    rooms = dict.fromkeys(max(longest, -(-total // count)) for count in range(fewest + 1, 0, -1))
    tried = [rows_of(lengths, room) for room in itertools.islice(rooms, _TRIED)]

    def cost(rows: list[list[int]]) -> float:
        width = max(sum(lengths[number] for number in row) for row in rows)
        return len(rows) * width * (1 + width / _WIDE)

    return min(tried, key=cost)


def rows_of(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Which items share a row of ``room`` tokens: longest first, each into the first row where it fits."""
    rows, left = [], []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        row = next((row for row, free in enumerate(left) if free >= lengths[number]), len(rows))
        if row == len(rows):
            rows.append([])
            left.append(room)
        rows[row].append(number)
        left[row] -= lengths[number]
    return rows


def _joined(items: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Several items as one."""
    joined = {}
    for key in dict.fromkeys(key for item in items for key in item):
        if key in TOKEN_KEYS:
            joined[key] = torch.cat([_of_tokens(key, item) for item in items])
        else:
            joined[key] = _join(key, [item[key] for item in items if key in item])
    # The first token of an item is not what the last token of the one before it should have said.
    for start in itertools.accumulate(len(item["input_ids"]) for item in items[:-1]):
        if "labels" in joined:
            joined["labels"][start] = IGNORED
    return joined


def _of_tokens(key: str, item: Mapping[str, torch.Tensor]) -> torch.Tensor:
    # Some processors give token types only to records with pictures.
    return item.get(key, torch.zeros_like(item["input_ids"]))


def _positions(lengths: Sequence[int], width: int) -> torch.Tensor:
    return torch.cat([torch.arange(length) for length in (*lengths, width - sum(lengths))])


def _join(key: str, tensors: list[torch.Tensor]) -> torch.Tensor:
    if len({tensor.ndim for tensor in tensors}) > 1:
        raise ValueError(f"{key}: items with {sorted({tensor.ndim for tensor in tensors})} dimensions cannot be joined")
    largest = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    return torch.cat([_grow(tensor, largest) for tensor in tensors])


def _grow(tensor: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    missing = [size - own for size, own in zip(sizes, tensor.shape[1:], strict=True)]
    return torch.nn.functional.pad(tensor, [pad for size in reversed(missing) for pad in (0, size)])


def _reports_replacements(processor: Processor, kind: str) -> bool:
    """Whether a processor says what it puts in place of pictures or videos."""
    name = f"replace_{kind}_token"
    return getattr(type(processor), name, None) not in (None, getattr(ProcessorMixin, name))
