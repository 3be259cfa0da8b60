"""What happens between the steps of a training: evolution, routers, progress, metrics, Ctrl-C."""

import json
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils import extract_model_from_parallel
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.modeling_utils import PreTrainedModel

from evomoe.model.sparse_model import is_sparse
from evomoe.model.structure import decoder_layers, ffn_names
from evomoe.recipe.options import EvolutionOptions
from evomoe.support.files import naming, write_text
from evomoe.training.collapse import StartOfStage2, relative_distances
from evomoe.training.evolution import ExpertEvolution
from evomoe.training.meter import RouterMeter


class EvolutionCallback(TrainerCallback):
    """Runs expert evolution before and after every optimiser step that really happened.

    Args:
        options: how experts evolve.
        moe_layers: the layers that do.
        start: where theta_1 of before the stage is kept.
    """

    def __init__(self, options: EvolutionOptions, moe_layers: Sequence[int], start: Path) -> None:
        self.options, self.moe_layers, self.start = options, list(moe_layers), StartOfStage2(start)
        self.resume_from: str | None = None
        self.experts: ExpertEvolution | None = None

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        model = extract_model_from_parallel(model)
        assert isinstance(model, PreTrainedModel)
        names, layers = ffn_names(model), decoder_layers(model)
        ffns = {index: layers[index].get_submodule(names[index]) for index in self.moe_layers}
        self.experts = ExpertEvolution(ffns, self.options, state.max_steps)
        if self.resume_from:
            self.experts.load(self.resume_from)
        else:
            self.start.write(self.experts, write=state.is_world_process_zero)

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        # Not in on_pre_optimizer_step: under DeepSpeed the step has happened by then.
        assert self.experts is not None
        self.experts.before_step()

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs) -> None:
        assert self.experts is not None
        self.experts.after_step(happened=not getattr(optimizer, "step_was_skipped", False))

    def distances(self) -> dict[str, float]:
        """Mean over the layers of each evolved expert's relative distance to expert 1, for the log."""
        assert self.experts is not None
        by_expert = relative_distances(self.experts, self.start)
        return {f"distance/expert{n + 2}": sum(layers.values()) / len(layers) for n, layers in enumerate(by_expert)}


class RouterCallback(TrainerCallback):
    """Looks at the routers before every optimiser step, and tells them after every one that really happened."""

    def __init__(self, meter: RouterMeter) -> None:
        self.meter = meter

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        self.meter.check_finite(state.global_step + 1)

    def on_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs) -> None:
        model = extract_model_from_parallel(model)
        if is_sparse(model) and not getattr(optimizer, "step_was_skipped", False):
            for block in model.moe_blocks.values():
                block.router.after_step()


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
        self.close()

    def close(self) -> None:
        """Ends the bar's line, also when training ended by an error, so that the error has one of its own."""
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
        write_text(self.path, "".join(json.dumps(entry) + "\n" for entry in kept))

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": self.stage, "step": state.global_step, **(logs or {})}) + "\n")


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        return False
    return True


AT_ONCE = 2.0
"""Seconds within which a second signal is the first one, sent twice."""


class InterruptCallback(TrainerCallback):
    """The first Ctrl-C, or a cluster's SIGTERM, ends training after the current step, with a checkpoint; the second ends it at once.

    Every process stops after the same step, whichever was told: a checkpoint needs them all.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.asked, self._since = False, 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes over both signals for the duration of the block."""
        self.asked = False
        if threading.current_thread() is not threading.main_thread():  # nobody can send them there
            yield
            return
        previous = {number: signal.signal(number, self._ask) for number in self.SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _ask(self, signum, frame) -> None:
        # torchrun hands a terminal's Ctrl-C on to processes that have had it already.
        if self.asked and time.monotonic() - self._since > AT_ONCE:
            raise KeyboardInterrupt
        if self.asked:
            return
        self.asked, self._since = True, time.monotonic()
        again = "; press Ctrl-C again to stop at once" if signum == signal.SIGINT else ""
        tqdm.write(f"Stopping after this step and saving a checkpoint{again}.", file=sys.stderr)

    def on_step_end(self, args, state, control, **kwargs):
        if args.world_size > 1:
            told = torch.tensor(float(self.asked), device=args.device)
            torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
            self.asked = bool(told)
        if self.asked:
            control.should_save = control.should_training_stop = True
        return control
