"""Hugging Face's Trainer, plus router metrics, expert evolution in its checkpoints, and a progress bar that tells the loss."""

import json
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from evomoe.analysis import balance
from evomoe.analysis.diversity import relative_distances
from evomoe.analysis.recording import MODALITIES, expert_counts, expert_names
from evomoe.evolution import ExpertEvolution
from evomoe.modeling import EvoMoEMixin
from evomoe.recipe import EvolutionOptions
from evomoe.structure import decoder_layers, ffn_names
from evomoe.support import hf


class EvoMoETrainer(Trainer):
    """The Trainer for all stages.

    Args:
        lengths: tokens of each record, for batches of similar length; None shuffles plainly.
        evolution: how experts evolve (Stage II); None for the other stages.
        moe_layers: the layers that evolve.
        metrics: JSON-lines file that receives every logged value.
        stage: its name in that file.
        label: what the progress bar is called, if not by the stage's name.
    """

    def __init__(
        self,
        *args: Any,
        lengths: Sequence[int] | None = None,
        evolution: EvolutionOptions | None = None,
        moe_layers: Sequence[int] = (),
        metrics: Path | None = None,
        stage: str = "",
        label: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.lengths = lengths
        for callback in (ProgressCallback, PrinterCallback):
            self.remove_callback(callback)
        self.evolution = EvolutionCallback(self, evolution, moe_layers) if evolution else None
        self.meter = RouterMeter()
        if self.evolution:
            self.add_callback(self.evolution)
        self.add_callback(RouterCallback(self))
        if metrics and self.is_world_process_zero():
            self.add_callback(MetricsFile(metrics, stage))
        self.add_callback(ProgressBar(label or stage))
        self.interrupt = InterruptCallback()
        self.add_callback(self.interrupt)

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        is_sparse = isinstance(self.accelerator.unwrap_model(model), EvoMoEMixin)
        if is_sparse:
            inputs = inputs | {"output_router_logits": True}
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if is_sparse:
            self.meter.update(outputs)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        logs |= self.meter.read()
        if self.evolution and self.evolution.experts and "loss" in logs:
            logs |= self.evolution.distances()
        super().log(logs, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        # Before the Trainer writes trainer_state.json, which marks a checkpoint as whole.
        if self.evolution and self.evolution.experts and output_dir and _internal_call:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            self.evolution.experts.save(output_dir, write=self.args.should_save)
        with self._native_names() if _internal_call else nullcontext():
            super().save_model(output_dir, _internal_call)

    @contextmanager
    def _native_names(self) -> Iterator[None]:
        """Checkpoints hold the model's own tensor names: the Trainer resumes by these, and knows nothing of hub formats."""
        self.model.save_pretrained = partial(self.model.save_pretrained, save_original_format=False)
        try:
            yield
        finally:
            del self.model.save_pretrained

    def _issue_warnings_after_load(self, load_result) -> None:
        """Going on from weights of which some were not found would train another model; the Trainer would only warn, of tied ones too."""
        tied = hf.names_not_saved(self.model)
        missing = [key for key in load_result.missing_keys if key not in tied]
        if missing or load_result.unexpected_keys:
            raise ValueError(
                f"The checkpoint to resume from belongs to another model: {len(missing)} tensors of this one are missing in it and "
                f"{len(load_result.unexpected_keys)} are unknown, e.g. {[*missing, *load_result.unexpected_keys][0]}."
            )
        self.model.tie_weights()

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any):
        """Trains; Ctrl-C saves a checkpoint first and then raises KeyboardInterrupt."""
        if self.evolution:
            self.evolution.resume_from = resume_from_checkpoint
        with self.interrupt.listening():
            output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        if self.interrupt.asked:
            raise KeyboardInterrupt
        return output

    def _get_train_sampler(self, *args: Any, **kwargs: Any):
        if self.lengths is None:
            return super()._get_train_sampler(*args, **kwargs)
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return EpochLengthSampler(batch, self.lengths, self.args.data_seed or self.args.seed)


class EpochLengthSampler(LengthGroupedSampler):
    """Batches of similar length, in an order that depends on seed and epoch alone, so that a resumed run sees the same."""

    def __init__(self, batch_size: int, lengths: Sequence[int], seed: int) -> None:
        super().__init__(batch_size, lengths=list(lengths), generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed(self.seed + 1_000_003 * epoch)


class EvolutionCallback(TrainerCallback):
    """Runs expert evolution after every optimiser step that really happened."""

    def __init__(self, trainer: EvoMoETrainer, options: EvolutionOptions, moe_layers: Sequence[int]) -> None:
        self.trainer, self.options, self.moe_layers = trainer, options, list(moe_layers)
        self.resume_from: str | None = None
        self.experts: ExpertEvolution | None = None

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        names, layers = ffn_names(model), decoder_layers(model)
        ffns = {index: layers[index].get_submodule(names[index]) for index in self.moe_layers}
        self.experts = ExpertEvolution(ffns, self.options, state.max_steps)
        if self.resume_from:
            self.experts.load(self.resume_from)

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs) -> None:
        assert self.experts is not None
        if not getattr(optimizer, "step_was_skipped", False):
            self.experts.after_step()

    def distances(self) -> dict[str, float]:
        """Mean over the layers of each evolved expert's relative distance to expert 1, for the log."""
        assert self.experts is not None
        by_expert = relative_distances(self.experts)
        return {f"distance/expert{n + 2}": sum(layers.values()) / len(layers) for n, layers in enumerate(by_expert)}


class RouterCallback(TrainerCallback):
    """Tells the routers after every optimiser step that really happened."""

    def __init__(self, trainer: EvoMoETrainer) -> None:
        self.trainer = trainer

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs) -> None:
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        if isinstance(model, EvoMoEMixin) and not getattr(optimizer, "step_was_skipped", False):
            for block in model.moe_blocks.values():
                block.router.after_step()


class RouterMeter:
    """Averages the auxiliary losses and counts which expert got which kind of token, between two log lines."""

    def __init__(self) -> None:
        self.losses: dict[str, list[torch.Tensor]] = {}
        self.counts_2E: torch.Tensor | None = None
        self.tokens_2: torch.Tensor | None = None
        self.real_experts = self.slots = 0

    @torch.no_grad()
    def update(self, outputs) -> None:
        for name, value in (outputs.get("aux_loss") or {}).items():
            self.losses.setdefault(name, []).append(value)
        records = [*(outputs.get("records") or {}).values()]
        for record in records:
            counts_2E, self.real_experts = expert_counts(record), len(record.experts)
            self.slots += record.routing.index_TK.numel()
            self.counts_2E = counts_2E if self.counts_2E is None else self.counts_2E + counts_2E
        if records:  # all layers see the same tokens
            tokens_2 = len(records) * torch.bincount(records[0].modality.is_image_T.long(), minlength=2)
            self.tokens_2 = tokens_2 if self.tokens_2 is None else self.tokens_2 + tokens_2

    def read(self) -> dict[str, float]:
        """The values since the last call: ``aux/<loss>``, ``load/<modality>/expert<n>`` or ``virtual<n>``, ``effective_experts``.

        Where slots go to no real expert, also ``experts/<modality>``: real experts per token and layer.
        """
        logs = {f"aux/{name}": torch.stack(values).mean().item() for name, values in self.losses.items()}
        if self.counts_2E is not None:
            counts_2E = self.counts_2E.cpu()
            names = [name.replace(" ", "") for name in expert_names(self.real_experts, counts_2E.shape[1])]
            for kind, share_E in zip(MODALITIES, balance.load(counts_2E), strict=True):
                logs |= {f"load/{kind}/{name}": share.item() for name, share in zip(names, share_E, strict=True)}
            real_2 = counts_2E[:, : self.real_experts].sum(1)
            if int(real_2.sum()) < self.slots and self.tokens_2 is not None:
                counted = zip(MODALITIES, real_2.tolist(), self.tokens_2.tolist(), strict=True)
                logs |= {f"experts/{kind}": real / tokens for kind, real, tokens in counted if tokens}
            logs["effective_experts"] = balance.effective_experts(balance.load(counts_2E[:, : self.real_experts].sum(0))).item()
        self.losses, self.counts_2E, self.tokens_2, self.slots = {}, None, None, 0
        return logs


class ProgressBar(TrainerCallback):
    """One bar per stage: step, loss, time left."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.bar: tqdm | None = None

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if state.is_world_process_zero:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.label, unit="step", dynamic_ncols=True)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if self.bar is not None and logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{float(logs['loss']):.4f}", refresh=False)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class MetricsFile(TrainerCallback):
    """Appends every log line to metrics.jsonl; a resumed run first drops the lines it is about to repeat."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path, self.stage = path, stage

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines()
        entries = [json.loads(line) for line in lines if _is_json(line)]  # a killed run may leave half a line
        kept = [entry for entry in entries if entry["stage"] != self.stage or entry["step"] <= state.global_step]
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
        partial.replace(self.path)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": self.stage, "step": state.global_step, **(logs or {})}) + "\n")


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return False
    return True


class InterruptCallback(TrainerCallback):
    """The first Ctrl-C ends training after the current step, with a checkpoint; the second ends it at once."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes over Ctrl-C for the duration of the block."""
        self.asked = False
        if threading.current_thread() is not threading.main_thread():  # nobody can press Ctrl-C there
            yield
            return
        previous = signal.signal(signal.SIGINT, self._ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def _ask(self, signum, frame) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        tqdm.write("Stopping after this step and saving a checkpoint; press Ctrl-C again to stop at once.", file=sys.stderr)

    def on_step_end(self, args, state, control, **kwargs):
        if self.asked:
            control.should_save = control.should_training_stop = True
        return control
