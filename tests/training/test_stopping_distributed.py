"""Two processes (gloo) of which one is told to stop: both save and stop after the same step."""

import json
import signal
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import multiprocessing as mp

from evomoe.training.callbacks import InterruptCallback


def worker(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", timedelta(minutes=3), rank=rank, world_size=2)
    callback, args = InterruptCallback(), SimpleNamespace(world_size=2, device=torch.device("cpu"))
    stopped = []
    with callback.listening():
        for step in range(4):
            if rank == 1 and step == 2:
                signal.raise_signal(signal.SIGTERM)
            control = SimpleNamespace(should_save=False, should_training_stop=False)
            callback.on_step_end(args, None, control)
            stopped.append(control.should_save and control.should_training_stop)
    Path(folder, f"{rank}.json").write_text(json.dumps(stopped))
    torch.distributed.destroy_process_group()


def test_all_stop_after_the_same_step(tmp_path):
    mp.spawn(worker, (str(tmp_path),), nprocs=2)
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [[False, False, True, True]] * 2
