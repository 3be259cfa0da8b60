"""Kills a run in the middle."""

from transformers import TrainerCallback


class StopAt(TrainerCallback):
    """Kills a run, without warning, after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise RuntimeError("killed")
