"""A mini world and a base model so small that a study of both takes seconds."""

from pathlib import Path

import pytest
import torch
from tiny.study import SIZES

from evomoe import mini
from evomoe.mini.small_vlm import Architecture
from evomoe.paper.study import base_model, measure
from evomoe.recipe.options import StageOptions


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "mini-world"
    mini.write(folder, seed=0, sizes=mini.Sizes(8, 8, 8, 8, SIZES, SIZES))
    return folder


@pytest.fixture(scope="session")
def base(world) -> Path:
    """A model as the base model is made, after a step of each kind."""
    stage = StageOptions(steps=1, batch_size=2, accumulation=1, train="text+projector")
    sizes = Architecture(vision_width=8, vision_layers=1, hidden_size=8, ffn_size=16, layers=4, heads=2, vocabulary=300)
    recipe = base_model.BaseRecipe(
        sizes, tower_steps=2, tower_batch_size=2, scaling_pictures=2, letters=stage, words=stage, pictures=stage
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mini, "ensure", lambda seed, root: world)
        learn, ran, threads = base_model._learn, [], torch.get_num_threads()
        patch.setattr(base_model, "_learn", lambda *args: ran.append(torch.get_num_threads()) or learn(*args))
        made = base_model.train("", 0, world.parent, recipe)
        patch.setattr(base_model, "_assemble", None)
        assert base_model.train("", 0, world.parent, recipe) == made  # once
        assert torch.get_num_threads() == threads and ran == [2] * 4  # two while it learns
    assert [path.name for path in world.parent.iterdir() if "base" in path.name] == [made.name]
    return made


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    """No model is asked for more than two tokens."""
    monkeypatch.setattr(measure, "LONGEST", 2)
