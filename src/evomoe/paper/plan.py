"""A table's rows at the paper's scale: models, data, steps and GPU hours as published, and the commands that start them.

Implements: Table 7 (data, steps and hours).
"""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evomoe.paper.tables.table import FINE_TUNE, WARM_UP, Row, Table
from evomoe.paper.tables.table_9 import WIDTHS
from evomoe.recipe.data_mix import data_title
from evomoe.recipe.recipe import Recipe
from evomoe.support.text import markdown_table

GPUS = 8
GPU = "A100-80G"


@dataclass(frozen=True)
class Model:
    """A language model of the paper.

    Attributes:
        source: its hub name.
        activated: Table 8's activated parameters, by method.
    """

    source: str
    activated: dict[str, str]


TOWER = "openai/clip-vit-large-patch14-336"
MODELS = {
    "Qwen2-0.5B": Model("Qwen/Qwen2-0.5B", {"dense": "0.5B", "MoE-LLaVA": "0.6B", "EvoMoE": "0.7B"}),
    "Qwen-1.8B": Model("Qwen/Qwen1.5-1.8B", {"dense": "1.8B", "MoE-LLaVA": "2.2B", "EvoMoE": "2.0B"}),
    "OpenChat-7B": Model("openchat/openchat_3.5", {"dense": "6.7B", "MoE-LLaVA": "9.6B", "EvoMoE": "7.3B"}),
}
"""The paper's Qwen-1.8B is the first generation, whose code is not part of transformers; Qwen1.5-1.8B has its shape."""

DATA = {
    WARM_UP: ("Hybrid-PT: MIMIC-IT, LRV, SViT, LVIS", "hybrid_pt.json"),
    FINE_TUNE: ("LLaVA-FT: LLaVA-mix-665k", "llava_v1_5_mix665k.json"),
}
STEPS = {WARM_UP: 5200, FINE_TUNE: 10395}
BATCH = {WARM_UP: 256, FINE_TUNE: 64}
HOURS = {1: 6.0, 2: 12.0, 3: 7.0}


def paper_recipe(row: Row, output: Path, stage1: str) -> Recipe:
    """The row's recipe with data and steps of Table 7, for GPUS processes; it starts from the model of Stage I."""
    recipe = row.recipe
    stages = {}
    for stage in recipe.stages:
        options = recipe.stage(stage)
        accumulation = BATCH[data_title(recipe.data_of(stage))] // (options.batch_size * GPUS)
        stages[f"stage{stage}"] = replace(
            options, accumulation=accumulation, data=options.data and DATA[data_title(options.data)][1]
        )
    return recipe.but(
        model=stage1,
        data=DATA[data_title(recipe.data)][1],
        output=str(output / row.name),
        dtype="bfloat16",
        trainer={"bf16": True, "gradient_checkpointing": True},
        **stages,
    )


def describe_plan(table: Table, rows: Sequence[Row], output: Path, write: bool = True) -> str:
    """What each row trains from Stage I on, and the commands; nothing is run, and nothing is written but, with ``write``, the recipes."""
    lines, commands = [], []
    for width in dict.fromkeys(row.width for row in rows):
        name, model = WIDTHS[width], MODELS[WIDTHS[width]]
        home = output / name
        stage1 = home / "stage1" / "stage1_warmup" / "model"
        lines.append(
            _line("Stage I, shared by all rows", name, model.activated["dense"], [WARM_UP], {1: STEPS[WARM_UP]}, HOURS[1])
        )
        commands += [
            f"# {name}: the dense model, its projector (stage 0) and Stage I",
            f"evomoe compose {home / 'composed'} --text {model.source} --vision {TOWER}",
            _launch(
                f"--model {home / 'composed'} --data {DATA[WARM_UP][1]} --output {home / 'stage1'} --stages 0 1 "
                f"--stage0.accumulation 1 --stage1.accumulation 8 --trainer bf16=true --dtype bfloat16"
            ),
        ]
        for row in (row for row in rows if row.width == width):
            recipe = paper_recipe(row, home, str(stage1))
            path = home / f"{row.name}.json"
            if write:
                path.parent.mkdir(parents=True, exist_ok=True)
                recipe.save(path)
            mixes = {stage: data_title(row.recipe.data_of(stage)) for stage in recipe.stages}
            steps = {stage: round(STEPS[mix] * recipe.stage(stage).epochs) for stage, mix in mixes.items()}
            lines.append(_line(row.label, name, model.activated.get(_method(recipe), ""), mixes.values(), steps, _hours(recipe)))
            commands += [f"# {row.label}", _launch(f"--recipe {path}")]
    header = ["row", "language model", "activated", "data", "steps by stage", "GPU hours"]
    return "\n\n".join(
        [
            f"{table.heading}, at the paper's scale ({GPUS} x {GPU}; parameters, steps and hours as published)",
            markdown_table(header, lines),
            "```\n" + "\n".join(commands) + "\n```",
            *table.notes,
        ]
    )


def _method(recipe: Recipe) -> str:
    """As Table 8 calls it; empty for what it does not have."""
    if recipe.stages == (1,):
        return "dense"
    router, per_token = recipe.moe.router, recipe.moe.num_experts_per_tok
    return {("linear", 2): "MoE-LLaVA", ("dtr", 1): "EvoMoE"}.get((router, per_token), "")


def _hours(recipe: Recipe) -> float | None:
    """Known for EvoMoE's own stages; the paper does not say how long the others took."""
    if recipe.stages != (2, 3) or (recipe.stage2.train, recipe.stage3.train) != ("ffn", "router"):
        return None
    return sum(HOURS[stage] * recipe.stage(stage).epochs for stage in recipe.stages)


def _line(label: str, model: str, activated: str, mixes: Iterable[str], steps: dict[int, int], hours: float | None) -> list[str]:
    data = ", then ".join(DATA[mix][0] for mix in dict.fromkeys(mixes))
    by_stage = ", ".join(f"{'I' * stage}: {count:,}" for stage, count in steps.items())
    return [label, model, activated, data, by_stage, f"{hours * GPUS:.0f}" if hours else ""]


def _launch(arguments: str) -> str:
    return shlex.join(["accelerate", "launch", "--num_processes", str(GPUS), "-m", "evomoe.cli", "train", *arguments.split()])
