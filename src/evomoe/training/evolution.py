"""Expert evolution: experts 2..E follow expert 1 while it trains.

Implements: Eq. 1, Table 3 (evolution values), Table 15 (evolution values).

theta_1 is the one trainable FFN of each MoE layer. The evolved experts are no modules: they are float32 shadows of its
parameters, kept outside the module tree. So nothing frozen is sharded or gathered, no precision is lost, and a run with
several processes needs no communication: each updates its own shard with the same betas.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from evomoe.recipe.options import EvolutionOptions
from evomoe.support.errors import OptionError
from evomoe.support.files import write_tensors
from evomoe.support.needs import needs, needs_of
from evomoe.training import sharding

Tensors = list[Tensor]


def ema(shadow: Tensors, step: "Step", beta: float) -> None:
    """theta_n <- b theta_n + (1 - b) theta_1: a moving average of expert 1."""
    torch._foreach_lerp_(shadow, step.new, 1 - beta)


@needs("back")
def scaled_update(shadow: Tensors, step: "Step", beta: float) -> None:
    """theta_n <- theta_n + (1 - b) (theta_1 now - theta_1 before the step): a shorter step the same way."""
    torch._foreach_add_(shadow, step.back, alpha=beta - 1)


@needs("back")
def lookback(shadow: Tensors, step: "Step", beta: float) -> None:
    """theta_n <- b theta_1 before the step + (1 - b) theta_1 now."""
    torch._foreach_copy_(shadow, step.new)
    torch._foreach_add_(shadow, step.back, alpha=beta)


@needs("gradient")
def literal(shadow: Tensors, step: "Step", beta: float) -> None:
    """theta_n <- b theta_1 + (1 - b) gradient of theta_1: Eq. 1 as printed."""
    torch._foreach_copy_(shadow, step.gradient)
    torch._foreach_lerp_(shadow, step.new, beta)


RULES: dict[str, Callable[[Tensors, "Step", float], None]] = {
    "ema": ema,
    "scaled_update": scaled_update,
    "lookback": lookback,
    "literal": literal,
}
"""The four readings of Eq. 1: each updates one expert's shadow in place, all layers in one fused call.

A rule declares which fields of ``Step`` it needs beside ``new``: ``@needs("back", "gradient")``.
"""


def check_rule(options: EvolutionOptions) -> None:
    """Raises OptionError if the rule does not exist."""
    if options.rule not in RULES:
        raise OptionError("evolution.rule", f"there is no '{options.rule}'; choose from {', '.join(RULES)}.")


@dataclass(frozen=True)
class Step:
    """What an optimiser step did to theta_1, as lists over its parameters.

    Attributes:
        new: theta_1 after the step.
        back: the way back, theta_1 before the step minus theta_1 after it; empty for rules that do not need it.
        gradient: of theta_1; empty for rules that do not need it.
    """

    new: Tensors
    back: Tensors
    gradient: Tensors


class ExpertEvolution:
    """The evolved experts of all MoE layers, updated after every optimiser step.

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
        start = self.local_values()
        self.shadows: list[Tensors] = [[self._place(t.clone()) for t in start] for _ in config.beta_ranges]
        self.stage1: Tensors = [self._place(t.clone()) for t in start]
        self.rule, needed = RULES[config.rule], needs_of(RULES[config.rule])
        self._old: Tensors = [self._place(t.clone()) for t in start] if "back" in needed else []
        self._needs_gradient = "gradient" in needed

    @property
    def num_experts(self) -> int:
        """E: expert 1 and the evolved ones."""
        return len(self.shadows) + 1

    @torch.no_grad()
    def after_step(self) -> None:
        """Updates the evolved experts; call once after each optimiser step that really happened, before ``zero_grad``."""
        self.step += 1
        if self.step > self.config.stop_fraction * self.total_steps:
            return
        new = [self._place(t) for t in self.local_values()]
        gradient = [self._place(t) for t in self._local_gradients()] if self._needs_gradient else []
        if self._old:
            torch._foreach_sub_(self._old, new)  # in place: the buffer holds the way back until it is refilled below
        for shadow, beta_by_layer in zip(self.shadows, self.draw_betas(self.step), strict=True):
            for beta, chosen in self._groups(beta_by_layer):
                step = Step(*([tensors[i] for i in chosen] if tensors else [] for tensors in (new, self._old, gradient)))
                self.rule([shadow[i] for i in chosen], step, beta)
        if self._old:
            torch._foreach_copy_(self._old, new)

    def _groups(self, beta_by_layer: Mapping[int, float]) -> list[tuple[float, list[int]]]:
        """The parameters that share a beta: all of them, or those of one layer."""
        groups: dict[float, list[int]] = {}
        for i, (layer, _) in enumerate(self.names):
            groups.setdefault(beta_by_layer[layer], []).append(i)
        return list(groups.items())

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
            for (layer, name), tensor, parameter in zip(self.names, shadow, self._parameters(), strict=True)
        }

    def save(self, folder: str | Path, write: bool = True) -> None:
        """Writes experts, Stage I weights and position to ``folder``; every process must call, those with ``write`` write."""
        tensors = self.expert_tensors()
        for (layer, name), tensor, parameter in zip(self.names, self.stage1, self._parameters(), strict=True):
            tensors[f"layers.{layer}.stage1.{name}"] = sharding.whole(tensor, parameter)
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
            raise ValueError(f"{folder} holds no evolution_state.safetensors: it is no checkpoint of Stage II, or incomplete.")
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["evolution"])
            mine = json.loads(json.dumps(asdict(self.config)))
            if state["config"] != mine or state["total_steps"] != self.total_steps:
                raise ValueError(
                    f"{path} was written with {state['config']} over {state['total_steps']} steps; this run has {mine} over "
                    f"{self.total_steps}. Resume with the same recipe, or choose another output folder."
                )
            for n, shadow in enumerate(self.shadows, start=1):
                self._fill(shadow, file, f"experts.{n}")
            self._fill(self.stage1, file, "stage1")
        self.step = state["step"]

    def _fill(self, targets: Tensors, file, label: str) -> None:
        for (layer, name), target, parameter in zip(self.names, targets, self._parameters(), strict=True):
            target.copy_(sharding.scatter(file.get_tensor(f"layers.{layer}.{label}.{name}"), parameter))

    def _parameters(self) -> list[nn.Parameter]:
        # Looked up at every call: sharding wrappers replace Parameter objects.
        return [parameter for ffn in self.ffns.values() for parameter in ffn.parameters()]

    def is_sharded(self) -> bool:
        """Whether each process holds only a part of every parameter (FSDP2)."""
        return any(map(sharding.is_sharded, self._parameters()))

    def local_values(self) -> Tensors:
        """theta_1 now, float32: this process's part, in the order of ``names``."""
        return [sharding.local(parameter).detach().float() for parameter in self._parameters()]

    def _local_gradients(self) -> Tensors:
        gradients = []
        for (layer, name), parameter in zip(self.names, self._parameters(), strict=True):
            if parameter.grad is None:
                raise ValueError(
                    f"rule '{self.config.rule}' needs gradients, and layer {layer}'s {name} has none (not available under ZeRO)."
                )
            gradients.append(sharding.local(parameter.grad).float())
        return gradients

    def _place(self, tensor: Tensor) -> Tensor:
        return tensor.cpu() if self.config.offload else tensor
