"""The recipe of the demo's dense model, and the model that ships with the package."""

import sys
from dataclasses import replace

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from evomoe.demo import make_dense_vlm
from evomoe.demo.journey import DENSE_MODEL


def test_the_shipped_model_is_small_and_knows_its_parts():
    assert (DENSE_MODEL / "model.safetensors").stat().st_size <= 8_000_000
    model = AutoModelForImageTextToText.from_pretrained(DENSE_MODEL)
    assert type(model).__name__ == "LlavaForConditionalGeneration" and model.config.text_config.num_hidden_layers == 8
    processor = AutoProcessor.from_pretrained(DENSE_MODEL)
    assert processor.image_token_id == model.config.image_token_id
    assert not [p.name for p in DENSE_MODEL.iterdir() if p.suffix in (".bin", ".pt", ".pkl")]


@pytest.mark.slow
def test_the_recipe_runs_from_end_to_end(tmp_path, monkeypatch):
    short = replace(make_dense_vlm.DenseRecipe(), tower_steps=4, stage1_steps=4, stage1_absence_steps=4, negated_steps=4)
    monkeypatch.setattr(make_dense_vlm, "DenseRecipe", lambda: short)
    monkeypatch.setattr(sys, "argv", ["make_dense_vlm", "--output", str(tmp_path / "vlm")])
    make_dense_vlm.main()
    AutoModelForImageTextToText.from_pretrained(tmp_path / "vlm")
    AutoProcessor.from_pretrained(tmp_path / "vlm")
    card = (tmp_path / "vlm" / "README.md").read_text()
    assert "negated steps" in card and "yes/no negated (3,605)" in card
