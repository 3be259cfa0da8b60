"""Expert evolution: experts 2..E follow expert 1 while it trains.

Implements: Eq. 1, Table 3 (evolution values), Table 15 (evolution values).

theta_1 is the one trainable FFN of each MoE layer. The evolved experts are no modules: they are float32 shadows of its
parameters, kept outside the module tree. So nothing frozen is sharded or gathered, no precision is lost, and a run with
several processes needs no communication: each updates its own shard with the same betas.

They are all that evolution holds, (E - 1) x 4 bytes for each parameter of theta_1: what a rule needs of theta_1 before the step
is added to the shadows before the step.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from evomoe.recipe.options import EvolutionOptions
from evomoe.support.files import write_tensors
from evomoe.support.rows import check_row
from evomoe.training import sharding

Tensors = list[Tensor]


@dataclass(frozen=True)
class Factors:
    """What an optimiser step makes of an evolved expert: theta_n <- the sum of these factors times what they are named after.

    Attributes:
        kept: theta_n, as it was.
        before: theta_1 before the step.
        after: theta_1 after the step.
        gradient: of theta_1.
    """

    kept: float = 0.0
    before: float = 0.0
    after: float = 0.0
    gradient: float = 0.0


def ema(beta: float) -> Factors:
    """theta_n <- b theta_n + (1 - b) theta_1: a moving average of expert 1."""
    return Factors(kept=beta, after=1 - beta)


def scaled_update(beta: float) -> Factors:
    """theta_n <- theta_n + (1 - b) (theta_1 now - theta_1 before the step): a shorter step the same way."""
    return Factors(kept=1, before=beta - 1, after=1 - beta)


def lookback(beta: float) -> Factors:
    """theta_n <- b theta_1 before the step + (1 - b) theta_1 now."""
    return Factors(before=beta, after=1 - beta)


def literal(beta: float) -> Factors:
    """theta_n <- b theta_1 + (1 - b) gradient of theta_1: Eq. 1 as printed."""
    return Factors(after=beta, gradient=1 - beta)


RULES: dict[str, Callable[[float], Factors]] = {
    "ema": ema,
    "scaled_update": scaled_update,
    "lookback": lookback,
    "literal": literal,
}
"""The four readings of Eq. 1: a rule says, for a beta, what an optimiser step makes of an evolved expert."""


def check_rule(options: EvolutionOptions) -> None:
    """Raises OptionError if the rule does not exist, or is no function."""
    check_row("evolution.rule", options.rule, RULES)


class ExpertEvolution:
    """The evolved experts of all MoE layers, updated before and after every optimiser step.

    Args:
        ffns: theta_1, the trainable FFN of each MoE layer, by layer index.
        config: rule and rates.
        total_steps: optimiser steps of Stage II, for ``stop_fraction``.
    """

    def __init__(self, ffns: Mapping[int, nn.Module], config: EvolutionOptions, total_steps: int) -> None:
        if total_steps < 1:
            raise ValueError(f"Expert evolution needs at least one step, got {total_steps}.")
        check_rule(config)
        self.ffns, self.config, self.total_steps, self.step = dict(ffns), config, total_steps, 0
        self.names = [(layer, name) for layer, ffn in self.ffns.items() for name, _ in ffn.named_parameters()]
        self.shadows: list[Tensors] = [[self._shadow(value) for value in self.local_values()] for _ in config.beta_ranges]
        self._begun = False  # whether a step's first half has happened

    @torch.no_grad()
    def before_step(self) -> None:
        """The first half of an update; call once before each optimiser step, while theta_1 is what it was after the last one."""
        if not self._begun and self._follows(self.step + 1):
            self._begun = True
            for shadow, theta1, _, factors in self._updates(self.step + 1):
                if factors.before:
                    _add(shadow, factors.kept, theta1, factors.before)

    @torch.no_grad()
    def after_step(self, happened: bool = True) -> None:
        """The second half; call once after each optimiser step, before ``zero_grad``.

        Args:
            happened: whether theta_1 took the step. One that was skipped is not counted; where a rule needs theta_1 before the step,
                it is a step of no length.
        """
        begun, self._begun = self._begun, False
        number, self.step = self.step + 1, self.step + happened
        if not self._follows(number):
            return
        if not begun:
            raise RuntimeError("ExpertEvolution.after_step was called without before_step.")
        for shadow, theta1, chosen, factors in self._updates(number):
            if happened or factors.before:
                _add(shadow, 1.0 if factors.before else factors.kept, theta1, factors.after)
            if happened and factors.gradient:
                _add(shadow, 1.0, self._local_gradients(chosen), factors.gradient)

    def _follows(self, step: int) -> bool:
        return step <= self.config.stop_fraction * self.total_steps

    def _updates(self, step: int) -> Iterator[tuple[Tensors, Tensors, list[int], Factors]]:
        """What a step updates, by expert and layer: shadows, theta_1, the numbers of their parameters, the factors."""
        theta1, rule = self.local_values(), RULES[self.config.rule]
        for shadow, beta_by_layer in zip(self.shadows, self.draw_betas(step), strict=True):
            for layer in self.ffns:
                chosen = [i for i, (of, _) in enumerate(self.names) if of == layer]
                yield [shadow[i] for i in chosen], [theta1[i] for i in chosen], chosen, rule(beta_by_layer[layer])

    def draw_betas(self, step: int) -> list[dict[int, float]]:
        """Beta of every evolved expert at an optimiser step, by layer.

        Drawn by a counter-based generator keyed by seed and step: the same on every process, and in a resumed run.
        """
        generator = np.random.Generator(np.random.Philox(key=[self.config.seed, step]))
        betas = []
        for low, high in self.config.beta_ranges:
            if self.config.beta_scope == "layer":
                betas.append({layer: float(generator.uniform(low, high)) for layer in self.ffns})
            else:
                betas.append(dict.fromkeys(self.ffns, float(generator.uniform(low, high))))
        return betas

    def expert_tensors(self) -> dict[str, Tensor]:
        """The evolved experts, whole (gathered if sharded), float32 on the CPU: ``layers.{layer}.experts.{n}.{parameter}``."""
        return {
            f"layers.{layer}.experts.{n}.{name}": sharding.whole(tensor, parameter)
            for n, shadow in enumerate(self.shadows, start=1)
            for (layer, name), tensor, parameter in zip(self.names, shadow, self.parameters(), strict=True)
        }

    def save(self, folder: str | Path, write: bool = True) -> None:
        """Writes experts and position to ``folder``; every process must call, those with ``write`` write."""
        if self._begun:
            raise RuntimeError("The evolved experts are half-way through a step; they can be saved between two.")
        tensors = self.expert_tensors()
        if not write:
            return
        state = {"step": self.step, "total_steps": self.total_steps, "config": asdict(self.config)}
        write_tensors(Path(folder) / "evolution_state.safetensors", tensors, {"evolution": json.dumps(state)})

    def load(self, folder: str | Path) -> None:
        """Continues from what ``save`` wrote; theta_1 must hold the checkpoint's weights already.

        Raises:
            ValueError: no state there, or it belongs to another run.
        """
        path = Path(folder) / "evolution_state.safetensors"
        if not path.is_file():
            raise ValueError(f"{folder} holds no evolution_state.safetensors: it is not a whole checkpoint of Stage II.")
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["evolution"])
            mine = json.loads(json.dumps(asdict(self.config)))
            if state["config"] != mine or state["total_steps"] != self.total_steps:
                raise ValueError(
                    f"{path} was written with {state['config']} over {state['total_steps']} steps; this run has {mine} over "
                    f"{self.total_steps}. Resume with the same recipe, or choose another output folder."
                )
            for n, shadow in enumerate(self.shadows, start=1):
                for (layer, name), target, parameter in zip(self.names, shadow, self.parameters(), strict=True):
                    whole = file.get_tensor(f"layers.{layer}.experts.{n}.{name}")
                    target.copy_(sharding.scatter(whole, parameter))
        self.step = state["step"]

    def parameters(self) -> list[nn.Parameter]:
        """theta_1, in the order of ``names``."""
        # Looked up at every call: sharding wrappers replace Parameter objects.
        return [parameter for ffn in self.ffns.values() for parameter in ffn.parameters()]

    def is_sharded(self) -> bool:
        """Whether each process holds only a part of every parameter (FSDP2)."""
        return any(map(sharding.is_sharded, self.parameters()))

    def local_values(self) -> Tensors:
        """theta_1 now: this process's part, in the order of ``names``."""
        return [sharding.local(parameter).detach() for parameter in self.parameters()]

    def _local_gradients(self, chosen: list[int]) -> Tensors:
        # All are there: DeepSpeed, which drops them, is refused with this rule.
        return [sharding.local(cast(Tensor, self.parameters()[i].grad)) for i in chosen]

    def _shadow(self, value: Tensor) -> Tensor:
        if not self.config.offload:
            return value.float().clone()
        kept = torch.empty(value.shape, dtype=torch.float32, pin_memory=value.is_cuda)
        return kept.copy_(value)


def _add(shadow: Tensors, kept: float, values: Tensors, factor: float) -> None:
    """shadow <- kept shadow + factor values, in place, in float32, on the device of the values.

    Shadows that are kept elsewhere go there and back, so that the result is the same wherever they are kept.
    """
    placed = [tensor.to(value.device, non_blocking=True) for tensor, value in zip(shadow, values, strict=True)]
    if kept == 0:
        torch._foreach_zero_(placed)
    elif kept != 1:
        torch._foreach_mul_(placed, kept)
    torch._foreach_add_(placed, values, alpha=factor)
    for tensor, changed in zip(shadow, placed, strict=True):
        if tensor is not changed:
            tensor.copy_(changed)
