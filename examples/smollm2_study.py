"""Dense, MoE-tuning and EvoMoE on a LLaVA of SmolLM2-135M, on a larger mini world: ten minutes on one large GPU.

Run it with ``make gpu-study``, or ``python examples/smollm2_study.py --output DIR``; ``--trial`` runs every part of it in small, on any
machine. An interrupted run goes on by the same command. Nothing comes from a hub: see ``smollm2_vlm.py``.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

from smollm2_vlm import load_language_model
from transformers import AutoImageProcessor, AutoModelForImageTextToText

from evomoe import mini
from evomoe.conversion.composing import compose
from evomoe.paper.study import base_model, study
from evomoe.paper.study.kept import collect, keep
from evomoe.paper.study.results import render
from evomoe.paper.study.scale import MiniScale
from evomoe.paper.tables.table import Table
from evomoe.paper.tables.table_2 import TABLE
from evomoe.recipe.options import StageOptions
from evomoe.recipe.recipe import Recipe
from evomoe.support.device import best_device
from evomoe.support.files import new_folder
from evomoe.training.run import run

ROWS = ("dense", "moe-tuning", "evolution", "evomoe")
SCALE = MiniScale(
    evolution_steps=400,
    routing_steps=200,
    batch_size=64,
    learning_rates={
        "text+projector": 2e-4,
        "text": 2e-4,
        "ffn": 4e-4,
        "router": 3e-3,
        "router+experts": 2e-4,
    },
)
ALIGN_STEPS, WARM_UP_STEPS = 150, 800
RECORDS = 40_000
"""Of the fine-tuning mix, so that no row sees one twice."""


def make_base(folder: Path, world: Path, scale: MiniScale, align_steps: int, warm_up_steps: int) -> Path:
    """SmolLM2 and the mini study's vision tower, joined and trained through Stages 0 and 1 on the warm-up mix; the model's folder."""
    untrained = folder / "untrained"
    if not untrained.is_dir():
        language_model, tokenizer = load_language_model()
        seeing = base_model.ensure()
        tower = AutoModelForImageTextToText.from_pretrained(seeing).model.vision_tower
        model, processor = compose(language_model, tower, tokenizer, AutoImageProcessor.from_pretrained(seeing))
        with new_folder(untrained) as home:
            model.save_pretrained(home)
            processor.save_pretrained(home)

    def stage(learning_rate: float, steps: int, train: str) -> StageOptions:
        return StageOptions(learning_rate, steps=steps, batch_size=scale.batch_size, accumulation=1, train=train)

    recipe = Recipe(
        str(untrained),
        str(world / "train" / "stage1.json"),
        str(folder / "run"),
        image_root=str(world / "train" / "images"),
        stages=(0, 1),
        stage0=stage(1e-3, align_steps, "projector"),
        stage1=stage(5e-4, warm_up_steps, "text+projector"),
        max_length=512,
        packing=True,
        trainer=scale.trainer,
    )
    return run(recipe, resume="if begun", report=False)


def main(arguments: list[str] | None = None) -> None:
    """Makes the base, trains and scores the rows, and prints the table with what each part took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/smollm2-study"), help="folder of all that is made")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), help="rows of Table 2")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--trial", action="store_true", help="two steps of four records for each stage, two questions of each benchmark"
    )
    options = parser.parse_args(arguments)
    half = {"bf16": True} if best_device().type == "cuda" else {}
    scale = replace(SCALE, trainer=SCALE.trainer | half | {"save_strategy": "no"})
    steps, records, limit = (ALIGN_STEPS, WARM_UP_STEPS), RECORDS, 0
    if options.trial:
        scale = replace(scale, evolution_steps=2, routing_steps=2, batch_size=4)
        steps, records, limit = (2, 2), 400, 2
    table = Table("smollm2", "LLaVA of SmolLM2-135M", TABLE.chosen(options.rows), average=True, baseline=options.rows[0])

    begin, took = time.perf_counter(), {}

    def lap(part: str) -> None:
        took[part] = time.perf_counter() - begin - sum(took.values())

    world = mini.ensure(0, stage2=records)
    lap("mini world")
    base = make_base(options.output / "base", world, scale, *steps)
    lap("base")
    cells = study.cells(table.rows, range(options.seeds), scale, {"": base}, {0: world}, "test", limit)
    home = options.output / "study"
    study.run([study.trainings(cell.recipe)[-1] for cell in cells], home)
    lap("training of all rows")
    study.run([cell.scoring for cell in cells], home)
    lap("scoring of all rows")
    path, found = keep(collect(table, cells, home, {}), options.output)
    print(f"\n{table.heading} ({best_device()})\n\n{render(table, found)}\n\nKept in {path}.")
    print("Seconds: " + ", ".join(f"{part} {seconds:.0f}" for part, seconds in took.items()))


if __name__ == "__main__":
    main()
