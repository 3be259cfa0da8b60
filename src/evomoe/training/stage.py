"""How a stage trains: the Trainer on one model, from the last checkpoint to the folder of the finished model."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from torch.utils.data import Dataset
from transformers import TrainingArguments
from transformers.modeling_utils import PreTrainedModel
from transformers.trainer_utils import set_seed

from evomoe.data.chat_template import with_end
from evomoe.data.conversations import Collator, ConversationDataset
from evomoe.data.streamed import StreamedDataset, StreamedItems
from evomoe.model.model_card import CARD
from evomoe.model.sparse_model import is_sparse
from evomoe.recipe.options import STAGES
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.run_folder import StageFolder
from evomoe.support import hf
from evomoe.support.device import prepare
from evomoe.support.files import remove, room_for, same_permissions, sync, write_text
from evomoe.support.processes import is_main_process, process_count
from evomoe.support.text import counted
from evomoe.training.arguments import shares_weights, training_arguments, zero_stage
from evomoe.training.checked_run import CheckedRun
from evomoe.training.every_part import SpareCallback, spare_picture
from evomoe.training.packing import check_packing, in_one_row, records_to_try
from evomoe.training.record_order import ORDERS, RecordOrder, seen_records, taken_records
from evomoe.training.stream_order import StreamOrder
from evomoe.training.trainer import EvoMoETrainer
from evomoe.training.zero3 import gather_by_layer

logger = logging.getLogger(__name__)


def train(
    run: CheckedRun,
    stage: int,
    model: PreTrainedModel,
    folder: StageFolder,
    dataset: ConversationDataset,
    finish: Callable[[EvoMoETrainer], None] | None = None,
    card: Callable[[], str] | None = None,
    **trainer_fields: Any,
) -> None:
    """Trains one stage and leaves its model in ``folder``, resuming from the last whole checkpoint there.

    Args:
        run: what the stage belongs to.
        dataset: what it trains on.
        finish: called with the trainer after training, before the model is written.
        card: makes the model card; tried before training too, so that what is wrong with it is known then.
        trainer_fields: for ``EvoMoETrainer``.
    """
    recipe, processor = run.recipe, dataset.processor
    arguments = training_arguments(recipe, stage, folder, dataset.per_pass)
    if arguments.n_gpu > 1:
        raise ValueError(
            f"This process sees {arguments.n_gpu} GPUs. Start one process per GPU: torchrun --nproc-per-node {arguments.n_gpu} "
            "-m evomoe.cli train ..., or show it one GPU with CUDA_VISIBLE_DEVICES=0."
        )
    if dataset.cut and is_main_process():
        of = f"the first {len(dataset):,} records" if isinstance(dataset, StreamedDataset) else counted(len(dataset), "record")
        logger.warning("Cut at max_length %d: %d of %s.", recipe.max_length, dataset.cut, of)
    prepare(arguments.device)
    set_seed(recipe.seed)
    adapters = run.prepare(stage, model)
    spare = spare_picture(model, dataset, shares_weights(arguments))
    items: Dataset[Any] = dataset
    if isinstance(dataset, StreamedDataset):
        order = _stream_order(run, stage, dataset)
        items = StreamedItems(dataset, len(order))
    else:
        order = _order(recipe, stage, dataset, arguments)
    trainer = EvoMoETrainer(
        model=model,
        args=arguments,
        train_dataset=items,
        data_collator=Collator(processor),
        processing_class=processor,
        order=order,
        metrics=run.folder.metrics,
        stage=STAGES[stage],
        label=folder.label,
        **trainer_fields,
    )
    if spare:
        trainer.add_callback(SpareCallback(spare))
    if recipe.packing:
        check_packing(model, records_to_try(dataset), processor)
        trainer.data_collator = Collator(processor, packing="one row" if in_one_row(model) else "rows")
    hf.name_units(model)
    if zero_stage(arguments) == 3:
        gather_by_layer(model)
    if is_sparse(model) and not shares_weights(arguments):  # which the trainer has put on its device
        model.pack_experts()
    if card:
        card()
    checkpoint = _resume_from(folder)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        if isinstance(order, StreamOrder):
            order.close()
    if isinstance(order, StreamOrder):
        order.save(folder.path, recipe.stage(stage).steps)
    if adapters:
        if trainer.is_world_process_zero() and not is_sparse(model):  # whose routers are trained too, and no adapter holds them
            adapters.save(folder.adapter, model.name_or_path or "")
        adapters.merge()
    if finish:
        finish(trainer)
    stops: Any = model.generation_config  # which every server reads
    if stops is not None:
        stops.eos_token_id = with_end(stops.eos_token_id, dataset.end_id)
    partial = folder.path / "model.partial"
    with room_for(
        folder.model, "It was not written, and the last checkpoint is whole. Make room, then go on with `resume=True`."
    ):
        if trainer.is_world_process_zero():
            remove(partial)
        trainer.accelerator.wait_for_everyone()
        trainer.save_model(str(partial))
        if trainer.is_world_process_zero():
            processor.save_pretrained(partial)
            if card:
                _write_card(partial / CARD, card)
            (partial / "training_args.bin").unlink(missing_ok=True)  # a pickle; recipe.json says the same
            same_permissions(partial)
            sync(partial)
            os.replace(partial, folder.model)
            remove(folder.checkpoints)
    trainer.accelerator.wait_for_everyone()


def _write_card(path: Path, card: Callable[[], str]) -> None:
    """A trained model is worth more than its card."""
    try:
        write_text(path, card())
    except Exception as error:
        logger.warning("%s: the model is written without a model card: %s", path.parent, error)


def _resume_from(folder: StageFolder) -> Path | None:
    """The checkpoint that all processes go on from. One of them looks: the files are large.

    Raises:
        ValueError: there are checkpoints, and none is whole.
    """
    found: list[Any] = [None, None]
    if is_main_process():
        try:
            found[0] = folder.resume_from()
        except ValueError as error:
            found[1] = error
    checkpoint, error = broadcast_object_list(found)
    if error is not None:
        raise error
    return checkpoint


def _stream_order(run: CheckedRun, stage: int, dataset: StreamedDataset) -> StreamOrder:
    """How the stage takes the rows of a stream."""
    recipe, settings = run.recipe, run.recipe.stage(stage)
    per_step, seen = recipe.records_per_step(stage, process_count()), seen_records(recipe, stage, len(dataset))
    order = StreamOrder(dataset.sources, recipe.streaming, recipe.seed, settings.steps, per_step, settings.batch_size, seen)
    if seen and settings.seen_records is None:
        before = max(other for other in recipe.stages if other < stage and recipe.data_of(other) == recipe.data_of(stage))
        order.follow(run.folder.stage(before).path)
    return order


def _order(recipe: Recipe, stage: int, dataset: ConversationDataset, arguments: TrainingArguments) -> RecordOrder | None:
    """How the stage takes its records; None for a way that the Trainer knows and we do not."""
    strategy, count = arguments.train_sampling_strategy, dataset.per_pass
    if strategy not in ORDERS:
        return None
    return RecordOrder(
        count,
        recipe.seed,
        seen_records(recipe, stage, count),
        taken_records(recipe, stage, count),
        dataset.lengths() if strategy == "group_by_length" else None,
        recipe.records_per_step(stage, arguments.world_size),
        [(share.records, share.taken) for share in dataset.shares],
    )
