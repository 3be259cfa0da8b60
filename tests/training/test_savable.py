"""What could not be saved is known before the first step, in the dry run too; settings that have no effect are no reason to stop."""

import json

import pytest
from small_runs import make_recipe
from tiny.parts import write_parts
from transformers import GenerationConfig

from evomoe.conversion.composing import compose_folder
from evomoe.conversion.upcycled_folder import upcycle_folder
from evomoe.model.loading import load_model
from evomoe.training.dry_run import describe
from evomoe.training.run import run
from evomoe.training.trainer import EvoMoETrainer

IDLE = [
    {"temperature": 0.9, "top_p": 0.6},
    {"temperature": 0.6, "top_k": 20, "min_p": 0.1},
    {"typical_p": 0.5, "epsilon_cutoff": 0.1, "eta_cutoff": 0.1, "num_beams": 1},
    {"length_penalty": 0.5, "early_stopping": True},
]
BROKEN = [
    {"num_return_sequences": 3},
    {"max_new_tokens": -3},
    {"cache_implementation": "none of these"},
    {"early_stopping": "x"},
    {"num_beams": 2, "num_return_sequences": 5},
]


def settings_of(folder, changes) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("changes", IDLE)
def test_settings_without_effect_are_left_out_and_training_ends_with_a_model(workspace, caplog, changes):
    settings_of(workspace / "model", changes)
    final = run(make_recipe(workspace, stages=(2, 3), steps=2), report=False)
    saved = GenerationConfig.from_pretrained(final)
    saved.validate(strict=True)
    assert not saved.do_sample and "have no effect without do_sample or num_beams" in caplog.text


def test_sampling_that_is_asked_for_stays(workspace):
    settings_of(workspace / "model", {"do_sample": True, "temperature": 0.7, "top_p": 0.5})
    settings = load_model(workspace / "model").generation_config
    assert (settings.do_sample, settings.temperature, settings.top_p) == (True, 0.7, 0.5)


@pytest.mark.parametrize("changes", BROKEN)
def test_settings_that_can_never_be_saved_are_one_sentence_from_every_verb(workspace, changes):
    settings_of(workspace / "model", changes)
    recipe = make_recipe(workspace)
    verbs = (
        lambda: run(recipe),
        lambda: describe(recipe),
        lambda: upcycle_folder(str(workspace / "model"), workspace / "out"),
        lambda: load_model(workspace / "model"),
    )
    for verb in verbs:
        with pytest.raises(
            ValueError, match=r"model: its generation_config.json could never be saved again; mend it: "
        ) as caught:
            verb()
        assert "\n" not in str(caught.value)
    assert not (workspace / "run").exists() and not (workspace / "out").exists()


def test_a_language_model_with_sampling_values_can_be_composed(tmp_path):
    text, vision = write_parts(tmp_path)
    settings_of(text, {"temperature": 0.9, "top_p": 0.6})
    compose_folder(str(text), str(vision), tmp_path / "llava")
    GenerationConfig.from_pretrained(tmp_path / "llava").validate(strict=True)


@pytest.mark.parametrize("what", ["transformers.LlavaProcessor", "transformers.GenerationConfig", "transformers.LlavaConfig"])
def test_whatever_cannot_be_saved_is_known_before_training(workspace, monkeypatch, what):
    def refuse(*args, **kwargs):
        raise TypeError("not serializable")

    monkeypatch.setattr(f"{what}.save_pretrained", refuse)
    monkeypatch.setattr(EvoMoETrainer, "training_step", lambda *a, **k: pytest.fail("trained first"))
    for start in (run, describe):
        with pytest.raises(ValueError, match="cannot be saved, so no checkpoint could be: not serializable"):
            start(make_recipe(workspace))
    assert not (workspace / "run").exists()
