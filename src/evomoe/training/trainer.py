"""Hugging Face's Trainer, plus router metrics, expert evolution in its checkpoints, and a progress bar that tells the loss."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

from transformers import Trainer
from transformers.modeling_utils import PreTrainedModel
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from evomoe.data.turns import BadRecordError, DamagedShardError, plain_error
from evomoe.model.sparse_model import is_sparse
from evomoe.recipe.checkpoint import step_of, writing
from evomoe.support import hf
from evomoe.support.text import counted
from evomoe.support.workers import begin_worker, ends_told
from evomoe.training.callbacks import EvolutionCallback, InterruptCallback, MetricsFile, ProgressBar, RouterCallback
from evomoe.training.divergence import DivergenceCallback
from evomoe.training.evolution import ExpertEvolution
from evomoe.training.label_loss import loss_on_labels
from evomoe.training.meter import RouterMeter
from evomoe.training.packing import packed_inputs
from evomoe.training.record_order import RecordOrder
from evomoe.training.stream_order import StreamOrder


class EvoMoETrainer(Trainer):
    """The Trainer for all stages.

    Args:
        order: in which order it takes the records; None for the Trainer's own way.
        evolution: how experts evolve (Stage II); None for the other stages.
        metrics: JSON-lines file that receives every logged value.
        stage: its name in that file.
        label: what the progress bar is called, if not by the stage's name.
    """

    def __init__(
        self,
        *args: Any,
        order: RecordOrder | StreamOrder | None = None,
        evolution: EvolutionCallback | None = None,
        metrics: Path | None = None,
        stage: str = "",
        label: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.order = order
        self._work: Path | None = None  # where a checkpoint lies while it is written
        self.label_smoother = None  # it takes the labels away from the model, and does not shift those of a VLM
        for callback in (ProgressCallback, PrinterCallback):
            self.remove_callback(callback)
        self.evolution = evolution
        self.meter = RouterMeter()
        if self.evolution:
            self.add_callback(self.evolution)
        self.add_callback(RouterCallback(self.meter))
        if metrics and self.is_world_process_zero():
            self.add_callback(MetricsFile(metrics, stage))
        self.progress = ProgressBar(label or stage)
        self.add_callback(self.progress)
        self.divergence = DivergenceCallback(self._records_of)
        self.add_callback(self.divergence)
        self.interrupt = InterruptCallback()
        self.add_callback(self.interrupt)

    @property
    def pretrained(self) -> PreTrainedModel:
        """The model that trains, which the Trainer would also take of other kinds, or make itself."""
        return cast(PreTrainedModel, self.model)

    @property
    def evolved(self) -> ExpertEvolution:
        """The experts that evolve; there are some once Stage II has begun to train."""
        assert self.evolution is not None and self.evolution.experts is not None
        return self.evolution.experts

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        own = cast(PreTrainedModel, self.accelerator.unwrap_model(model))
        if "position_ids" in inputs:
            inputs = packed_inputs(own, inputs)
        routes = is_sparse(own)
        if routes:
            inputs = inputs | {"output_router_logits": True}
        smoothing = self.args.label_smoothing_factor
        compiled = self.args.torch_compile and not smoothing  # the hook would make it compile anew at each step
        with nullcontext() if compiled else loss_on_labels(own, inputs["labels"], smoothing):
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if own.training:
            self.divergence.note(loss)
        if routes:
            self.meter.update(outputs)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        logs |= self.meter.drain()
        if self.evolution and self.evolution.experts and "loss" in logs:
            logs |= self.evolution.distances()
        super().log(logs, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self.evolution and self.evolution.experts and output_dir and _internal_call:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            self.evolution.experts.save(output_dir, write=self.args.should_save)
        with self._native_names() if _internal_call else nullcontext():
            super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, model, trial) -> None:
        """As the Trainer does, under another name until all processes have written their part."""
        assert self.args.output_dir is not None
        folder, writes = Path(self.args.output_dir), self.is_world_process_zero()
        self._work = folder / "partial"
        try:
            with writing(folder, self.state.global_step, self.args.save_total_limit) if writes else nullcontext():
                self.accelerator.wait_for_everyone()
                super()._save_checkpoint(model, trial)
                if isinstance(self.order, StreamOrder):
                    self.order.save(self._work / f"checkpoint-{self.state.global_step}", self.state.global_step)
                self.accelerator.wait_for_everyone()
        finally:
            self._work = None
        self.accelerator.wait_for_everyone()

    def _get_output_dir(self, trial) -> str:
        return str(self._work) if self._work else super()._get_output_dir(trial)

    @contextmanager
    def _native_names(self) -> Iterator[None]:
        """Checkpoints hold the model's own tensor names: the Trainer resumes by these, and knows nothing of hub formats."""
        own = vars(self.pretrained)
        own["save_pretrained"] = partial(self.pretrained.save_pretrained, save_original_format=False)
        try:
            yield
        finally:
            del own["save_pretrained"]

    def _issue_warnings_after_load(self, load_result) -> None:
        """Going on from weights of which some were not found would train another model; the Trainer would only warn, of tied ones too."""
        tied = hf.names_not_saved(self.pretrained)
        missing = [key for key in load_result.missing_keys if key not in tied]
        if missing or load_result.unexpected_keys:
            raise ValueError(
                f"The checkpoint to resume from belongs to another model: {len(missing)} tensors of this one are missing in it and "
                f"{len(load_result.unexpected_keys)} are unknown, e.g. {[*missing, *load_result.unexpected_keys][0]}."
            )
        self.pretrained.tie_weights()

    # pyrefly: ignore[bad-override]: a stage names the checkpoint, where the Trainer's True would look for the last one
    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any):
        """Trains; Ctrl-C saves a checkpoint first and then raises KeyboardInterrupt."""
        if self.evolution:
            self.evolution.resume_from = resume_from_checkpoint
        if resume_from_checkpoint and isinstance(self.order, StreamOrder):
            checkpoint = Path(resume_from_checkpoint)
            self.order.go_on(checkpoint, step_of(checkpoint))
        with self.interrupt.listening(), self._keeping_steps(), ends_told(self.args.dataloader_num_workers):
            output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        if self.interrupt.asked:
            raise KeyboardInterrupt
        return output

    @contextmanager
    def _keeping_steps(self) -> Iterator[None]:
        """Lets a bad record, which shows only when it is read, cost no step: a checkpoint is written first, if it needs no others."""
        try:
            yield
        except BadRecordError as error:
            step, saved, streams = self.state.global_step, "", isinstance(self.order, StreamOrder)
            if step and self.args.world_size == 1:
                if not (Path(str(self.args.output_dir)) / f"checkpoint-{step}" / "trainer_state.json").is_file():
                    hf.save_checkpoint(self)
                saved = f" The {counted(step, 'step')} before it {'is' if step == 1 else 'are'} saved: `resume`."
            leave_out = "" if isinstance(error, DamagedShardError) else ", or leave it out: `on_bad_record=skip`"
            raise BadRecordError(
                f"{plain_error(error)}.{saved} Repair it{leave_out}."
                + ("" if streams else " `check_pictures=decode` finds all such records before training.")
            ) from None
        finally:
            self.progress.close()

    def _records_of(self, step: int) -> list[str]:
        """The names of a step's records, where their order is known."""
        if isinstance(self.order, StreamOrder):
            return self.order.names(step)
        records = getattr(self.train_dataset, "records", None)
        if self.order is None or records is None:
            return []
        batch_size = self.args.train_batch_size * self.args.world_size
        numbers = self.order.of_step(step, batch_size, self.args.gradient_accumulation_steps)
        return [records[number].where for number in numbers]

    def get_train_dataloader(self):
        loader = super().get_train_dataloader()
        own = getattr(loader, "base_dataloader", loader)  # accelerate's hands out what an own one within it makes
        own.worker_init_fn = partial(begin_worker, then=own.worker_init_fn)
        return loader

    def _get_train_sampler(self, *args: Any, **kwargs: Any):
        return self.order or super()._get_train_sampler(*args, **kwargs)
