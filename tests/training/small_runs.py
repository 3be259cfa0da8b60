"""Runs of a few steps on a tiny model, and what changed in its weights."""

from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText

from evomoe.recipe.options import MoEOptions, StageOptions
from evomoe.recipe.recipe import Recipe


def make_recipe(workspace: Path, output: str = "run", steps: int = 4, **changes) -> Recipe:
    def stage(train: str) -> StageOptions:
        return StageOptions(learning_rate=1e-2, steps=steps, batch_size=4, accumulation=2, train=train, trainer={"save_steps": 2})

    defaults = {
        "stages": (2, 3),
        "moe": MoEOptions(router_options={"hypernet_width": 4, "rank": 2}),
        "stage0": stage("projector"),
        "stage1": stage("text+projector"),
        "stage2": stage("ffn"),
        "stage3": stage("router"),
        "image_root": str(workspace / "images"),
    }
    return Recipe(str(workspace / "model"), str(workspace / "data.json"), str(workspace / output), **defaults | changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForImageTextToText.from_pretrained(folder).state_dict()


def changed(before: Path, after: Path) -> set[str]:
    """Names of the tensors that differ between two model folders of the same architecture."""
    old, new = weights(before), weights(after)
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


def under(names: set[str], *parts: str) -> bool:
    return bool(names) and all(any(part in name for part in parts) for name in names)
