"""In which order a stage takes its records: shuffled at each pass, and going on where earlier stages on the same data stopped.

A router that learns from records which expert 1 was trained on learns to trust expert 1, which remembers them, and not which expert
answers new records best.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from evomoe.recipe.recipe import Recipe
from evomoe.support.processes import process_count

ORDERS = ("random", "group_by_length")
"""The Trainer's sampling strategies for which the order is ours."""


def planned_steps(recipe: Recipe, stage: int, num_records: int) -> int:
    """Optimiser steps of a stage, as the Trainer will count them."""
    options = recipe.stage(stage)
    return options.steps or max(1, math.ceil(steps_per_pass(recipe, stage, num_records) * options.epochs))


def taken_records(recipe: Recipe, stage: int, num_records: int) -> int:
    """How many records a stage takes in all; one that it takes in two passes counts twice."""
    if recipe.streaming:
        return recipe.stage(stage).steps * recipe.records_per_step(stage, process_count())
    passes, steps = divmod(planned_steps(recipe, stage, num_records), steps_per_pass(recipe, stage, num_records))
    return passes * num_records + steps * recipe.records_per_step(stage, process_count())


def seen_records(recipe: Recipe, stage: int, num_records: int) -> int:
    """How many records of a stage's data were taken before it: what its option says, else what the recipe's earlier stages take."""
    given, data = recipe.stage(stage).seen_records, recipe.data_of(stage)
    if given is not None:
        return given
    earlier = [before for before in recipe.stages if before < stage and recipe.data_of(before) == data]
    return sum(taken_records(recipe, before, num_records) for before in earlier)


def steps_per_pass(recipe: Recipe, stage: int, num_records: int) -> int:
    """Optimiser steps in which a stage takes all of its records once."""
    options = recipe.stage(stage)
    batches = math.ceil(num_records / (options.batch_size * process_count()))
    return math.ceil(batches / options.accumulation)


class RecordOrder(Sampler[int]):
    """The numbers of the records, pass by pass. It depends on its arguments alone, so that a resumed run sees the same.

    Args:
        num_records: N, of one pass.
        seed: shuffles the records, at each pass in another way.
        seen: how many of that order were taken before.
        taken: how many will be taken; what comes after them is in the order too, but nobody asks for it.
        lengths: tokens of each record, for batches of similar length; None for batches of any.
        batch_size: records of a step, which are of similar length.
        shares: of several sources, the records and how many of them a pass takes; these add up to N. Each record of a source is taken
            once before one is taken twice, over passes too.
    """

    def __init__(
        self,
        num_records: int,
        seed: int,
        seen: int = 0,
        taken: int = 0,
        lengths: Sequence[int] | None = None,
        batch_size: int = 1,
        shares: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.shares = shares
        self.num_records, self.seed, self.seen, self.taken = num_records, seed, seen, taken
        self.lengths, self.batch_size, self.epoch = lengths, batch_size, 0

    def __len__(self) -> int:
        return self.num_records

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(self.of_epoch(self.epoch))

    def of_epoch(self, epoch: int) -> list[int]:
        """The order of one of the stage's passes."""
        passes, offset = divmod(self.seen + epoch * self.num_records, self.num_records)
        order = self._shuffled(passes)[offset:] + (self._shuffled(passes + 1)[:offset] if offset else [])
        if self.lengths is None:
            return order
        left = self.taken - epoch * self.num_records
        last = left if 0 < left < self.num_records else self.num_records
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * epoch)
        lengths = [self.lengths[number] for number in order[:last]]
        grouped = get_length_grouped_indices(lengths, self.batch_size, generator=generator)
        return [order[place] for place in grouped] + order[last:]

    def of_step(self, step: int, batch_size: int, accumulation: int) -> list[int]:
        """The records of one of the stage's optimiser steps, counted from 0.

        Args:
            batch_size: of a micro-batch, over all processes.
            accumulation: micro-batches per step.
        """
        per_pass = math.ceil(math.ceil(self.num_records / batch_size) / accumulation)
        epoch, number = divmod(step, per_pass)
        first = number * batch_size * accumulation
        return self.of_epoch(epoch)[first : first + batch_size * accumulation]

    def _shuffled(self, number: int) -> list[int]:
        """The records of one pass, in its order."""
        order = _permutation(self.num_records, self.seed + number)
        if not self.shares:
            return order
        pool: list[int] = []
        first = 0
        for source, (records, taken) in enumerate(self.shares):
            pool += [first + record for record in _drawn(records, taken, number, self.seed + _SOURCES_APART * (source + 1))]
            first += records
        return [pool[place] for place in order]


_SOURCES_APART = 1_000_000_007
"""Between the seeds by which sources draw: more than there are passes."""


def _drawn(records: int, taken: int, number: int, seed: int) -> list[int]:
    """The records that one pass takes of a source: the next of one shuffled round after the other."""
    if taken == records:
        return [*range(records)]
    start, end = number * taken, (number + 1) * taken
    rounds = range(start // records, -(-end // records))
    stream = [record for one in rounds for record in _permutation(records, seed + one)]
    return stream[start - rounds.start * records : end - rounds.start * records]


def _permutation(count: int, seed: int) -> list[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
