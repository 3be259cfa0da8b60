"""The recipe of the demo's model runs from end to end."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

SCRIPT = Path(__file__).parent.parent / "examples" / "make_demo_model.py"


@pytest.mark.slow
def test_the_recipe_of_the_demo_s_model_runs_from_end_to_end(tmp_path):
    spec = importlib.util.spec_from_file_location("make_demo_model", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    recipe = replace(script.Recipe(), tower_steps=3, stage1_steps=2, negated_steps=2, warmup_steps=1)
    script.make(tmp_path / "vlm", 0, recipe)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "vlm")
    assert model.config.text_config.num_hidden_layers == 8
    AutoProcessor.from_pretrained(tmp_path / "vlm")
    card = (tmp_path / "vlm" / "README.md").read_text()
    assert "| tower steps" in card and "yes/no negated (3,605)" in card
