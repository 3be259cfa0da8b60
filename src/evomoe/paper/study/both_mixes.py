"""The mini world's two mixes in one file, for stages that train on both."""

import json
import random
from pathlib import Path

from evomoe.paper.tables.table import MIX
from evomoe.recipe.recipe import Recipe
from evomoe.support.files import write_text


def ensure_both(world: Path, recipe: Recipe) -> None:
    """Writes ``both.json`` beside the mixes of a world, if a stage of the recipe needs it: as many records of each, in random order."""
    file = world / "train" / "both.json"
    if file.is_file() or MIX not in {recipe.data, *(recipe.stage(stage).data for stage in recipe.stages)}:
        return
    mixes = [json.loads((world / "train" / f"stage{stage}.json").read_text(encoding="utf-8")) for stage in (1, 2)]
    records = [record for mix in mixes for record in mix[: min(map(len, mixes))]]
    random.Random(0).shuffle(records)
    write_text(file, json.dumps(records) + "\n")
