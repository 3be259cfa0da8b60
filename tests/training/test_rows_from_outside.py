"""A router, an initialiser, a loss, a gate and a rule of evolution that another package adds: one row each.

They go through training, saving, loading, scoring and listing without a line changed in the package. Benchmarks and tables have
such tests of their own.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file
from tiny import inputs_for
from torch import nn
from transformers import AutoModelForImageTextToText

from evomoe import AUX_LOSSES, GATES, INITS, ROUTERS, RULES
from evomoe.cli import main
from evomoe.conversion.expert_init import ExpertInit
from evomoe.model.routers import Router
from evomoe.model.routers.float32 import Float32Linear
from evomoe.recipe.row_options import InitOptions, RouterOptions
from evomoe.support.needs import needs
from evomoe.training.evolution import Factors


@dataclass(frozen=True)
class WarmOptions(RouterOptions):
    """How warm.

    Attributes:
        warmth: what the logits are divided by.
    """

    warmth: float = 1.0


class WarmRouter(Router):
    """Scores by a linear map, and says how sure it is."""

    Options = WarmOptions
    gives = ("importance_T",)

    def __init__(self, hidden_size: int, num_experts: int, **options) -> None:
        super().__init__(hidden_size, num_experts, **options)
        self.map = Float32Linear(hidden_size, num_experts, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.map.weight, std=0.02)

    def forward(self, x_TD, modality):
        return self.map(x_TD) / self.options.warmth

    def score(self, x_TD, modality):
        return replace(scores := super().score(x_TD, modality), importance_T=scores.logits_TE.logsumexp(-1))


@dataclass(frozen=True)
class EvolvedTwiceOptions(InitOptions):
    """Where the evolved experts are, and how far they are pushed."""

    file: str = ""
    push: float = 2.0

    from_stage2: ClassVar[str] = "file"


def evolved_twice(ffn, num_experts, layer, generator, options):
    """The evolved experts, pushed away from the first."""
    experts = INITS["replicate"](ffn, num_experts, layer, generator)
    tensors = load_file(options.file)
    with torch.no_grad():
        for n, expert in enumerate(experts[1:], start=1):
            for name, parameter in expert.named_parameters():
                evolved = tensors[f"layers.{layer}.experts.{n}.{name}"]
                parameter.add_(options.push * (evolved - parameter))
    return experts


@needs("importance_T")
def calm(record):
    """Keeps the router calm."""
    return record.routing.importance_T.square().mean()


def halved(chosen_TK, counted_TK):
    """Half of the probability."""
    return chosen_TK / 2


def drift(beta):
    """Against the step and the gradient."""
    return Factors(kept=1, before=beta, after=-beta, gradient=-0.1)


@pytest.fixture
def rows(monkeypatch):
    for table, name, row in (
        (ROUTERS, "warm", WarmRouter),
        (INITS, "evolved_twice", ExpertInit(evolved_twice, EvolvedTwiceOptions)),
        (AUX_LOSSES, "calm", calm),
        (GATES, "halved", halved),
        (RULES, "drift", drift),
    ):
        monkeypatch.setitem(table, name, row)


def train(workspace, *options: str) -> int:
    """Stages II and III of all that is of one's own."""
    small = [word for stage in (2, 3) for word in (f"--stage{stage}.steps", "2", f"--stage{stage}.accumulation", "1")]
    return main(
        ["train", "--model", str(workspace / "model"), "--data", str(workspace / "data.json"), "--output", str(workspace / "run"),
         "--image-root", str(workspace / "images"), "--stages", "2", "3", *small, "--router", "warm", "--router-options.warmth", "2",
         "--gate", "halved", "--aux-losses", "calm=0.1", "--evolution.rule", "drift", "--expert-init", "evolved_twice", *options]
    )  # fmt: skip


def test_they_are_trained_saved_loaded_and_scored(rows, workspace, capsys):
    pytest.importorskip("easy_vqa")
    assert train(workspace) == 0
    folder = workspace / "run" / "stage3_routing" / "model"
    model = AutoModelForImageTextToText.from_pretrained(folder)
    moe, block = model.config.moe, model.moe_blocks[0]
    assert (moe.router, moe.router_options, moe.gate, moe.expert_init) == ("warm", {"warmth": 2.0}, "halved", "evolved_twice")
    evolved = load_file(workspace / "run" / "stage2_evolution" / "evolved_experts.safetensors")
    for name, first in block.experts.weights(0).items():
        pushed = first + 2 * (evolved[f"layers.0.experts.1.{name}"] - first)
        torch.testing.assert_close(block.experts.weights(1)[name], pushed)
    record = model(**inputs_for(model), output_router_logits=True).records[0]
    chosen_T = record.routing.probs_TE.gather(1, record.routing.index_TK)
    torch.testing.assert_close(record.routing.weight_TK, chosen_T / 2)
    assert '"aux/calm"' in (workspace / "run" / "metrics.jsonl").read_text()
    assert main(["eval", str(folder), "--limit", "4", "--workers", "0", "--output", str(workspace / "scores")]) == 0
    assert "easy-vqa" in capsys.readouterr().out


def test_what_they_declare_is_asked_of_the_others(rows, workspace, capsys):
    assert train(workspace, "--router", "linear") == 1
    assert "'calm' is for router anyexperts, warm, not for 'linear'" in capsys.readouterr().err
    assert train(workspace, "--stages", "3") == 1
    assert "--init-options" in capsys.readouterr().err and not (workspace / "run").exists()


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("routers", "warm Scores by a linear map, and says how sure it is. Options: warmth=1.0"),
        ("inits", "evolved_twice The evolved experts, pushed away from the first. Options: file, push=2.0"),
        ("losses", "calm Keeps the router calm."),
        ("gates", "halved Half of the probability."),
        ("rules", "drift Against the step and the gradient."),
    ],
)
def test_they_are_listed(rows, table, line, capsys):
    assert main(["list", table]) == 0
    assert line in [" ".join(shown.split()) for shown in capsys.readouterr().out.splitlines()]
