"""How a stage trains: the Trainer on one model, from the last checkpoint to the folder of the finished model."""

import logging
import os
import shutil
from collections.abc import Callable
from typing import Any

from transformers import TrainingArguments
from transformers.modeling_utils import PreTrainedModel
from transformers.trainer_utils import set_seed

from evomoe.data.chat_template import with_end
from evomoe.data.conversations import Collator, ConversationDataset
from evomoe.model.model_card import CARD
from evomoe.model.sparse_model import is_sparse
from evomoe.recipe.options import STAGES
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.run_folder import StageFolder
from evomoe.support.device import prepare
from evomoe.support.files import write_text
from evomoe.support.processes import is_main_process
from evomoe.support.text import counted
from evomoe.training.arguments import training_arguments
from evomoe.training.checked_run import CheckedRun
from evomoe.training.packing import check_packing, in_one_row, records_to_try
from evomoe.training.record_order import RecordOrder, seen_records, taken_records
from evomoe.training.trainable import set_trainable
from evomoe.training.trainer import EvoMoETrainer

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
        card: makes the model card, after training.
        trainer_fields: for ``EvoMoETrainer``.
    """
    recipe, processor = run.recipe, dataset.processor
    arguments = training_arguments(recipe, stage, folder, len(dataset))
    if arguments.n_gpu > 1:
        raise ValueError(
            f"This process sees {arguments.n_gpu} GPUs. Start one process per GPU: torchrun --nproc-per-node {arguments.n_gpu} "
            "-m evomoe.cli train ..., or show it one GPU with CUDA_VISIBLE_DEVICES=0."
        )
    if dataset.cut and is_main_process():
        logger.warning("Cut at max_length %d: %d of %s.", recipe.max_length, dataset.cut, counted(len(dataset), "record"))
    prepare(arguments.device)
    set_seed(recipe.seed)
    set_trainable(model, recipe.stage(stage).train, run.moe.moe_layers)
    trainer = EvoMoETrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=Collator(processor),
        processing_class=processor,
        order=_order(recipe, stage, dataset, arguments),
        moe_layers=run.moe.moe_layers,
        metrics=run.folder.metrics,
        stage=STAGES[stage],
        label=folder.label,
        **trainer_fields,
    )
    if recipe.packing:
        check_packing(model, records_to_try(dataset), processor)
        trainer.data_collator = Collator(processor, packing="one row" if in_one_row(model) else "rows")
    if is_sparse(model):  # which the trainer has put on its device
        model.pack_experts()
    checkpoint = folder.last_checkpoint()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if finish:
        finish(trainer)
    stops: Any = model.generation_config  # which every server reads
    if stops is not None:
        stops.eos_token_id = with_end(stops.eos_token_id, dataset.end_id)
    partial = folder.path / "model.partial"
    trainer.save_model(str(partial))
    if trainer.is_world_process_zero():
        processor.save_pretrained(partial)
        if card:
            write_text(partial / CARD, card())
        (partial / "training_args.bin").unlink(missing_ok=True)  # a pickle; recipe.json says the same
        os.replace(partial, folder.model)
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()


def _order(recipe: Recipe, stage: int, dataset: ConversationDataset, arguments: TrainingArguments) -> RecordOrder | None:
    """How the stage takes its records; None for a way that the Trainer knows and we do not."""
    strategy, count = arguments.train_sampling_strategy, len(dataset)
    if strategy not in ("random", "group_by_length"):
        return None
    return RecordOrder(
        count,
        recipe.seed,
        seen_records(recipe, stage, count),
        taken_records(recipe, stage, count),
        dataset.lengths() if strategy == "group_by_length" else None,
        recipe.stage(stage).batch_size * recipe.stage(stage).accumulation,
    )
