"""The processes that share an evaluation."""

from datetime import timedelta

import torch
from accelerate import PartialState

from evomoe.support.device import best_device
from evomoe.support.processes import check_processes, process_count


def this_process() -> PartialState:
    """This process among those that torchrun or accelerate started; the only one without them.

    Raises:
        ValueError: several were started, and they do not know of each other, or accelerate cannot join them on this accelerator.
    """
    check_processes()
    # Unless told of the CPU, accelerate takes each process for the only one where there is no accelerator.
    # One process may wait hours for another one's answers.
    state = PartialState(cpu=best_device().type == "cpu", timeout=timedelta(days=7))
    if state.num_processes < (started := process_count()):
        raise ValueError(
            f"{started} processes were started, and accelerate cannot join them on '{device_of(state).type}': each would answer all "
            "questions. Start one."
        )
    return state


def device_of(state: PartialState) -> torch.device:
    """The device that a process computes on."""
    assert state.device is not None  # it is for a state that is not made yet
    return state.device


def leave() -> None:
    """Ends the connection of this process to the others, if there is one, before Python takes its parts to pieces."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
