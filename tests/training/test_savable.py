"""What could not be saved is known before the first step, in the dry run too; settings that have no effect are no reason to stop."""

import json

import pytest
from small_runs import make_recipe
from tiny import inputs_for
from tiny.parts import write_parts
from transformers import GenerationConfig

from evomoe.conversion.composing import compose_folder
from evomoe.conversion.upcycled_folder import upcycle_folder
from evomoe.model.generation_settings import _NOT_TRIED
from evomoe.model.loading import load_model
from evomoe.training.dry_run import describe
from evomoe.training.run import run
from evomoe.training.trainer import EvoMoETrainer

TEXT = inputs_for("llava", (0,))
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
    {"watermarking_config": {"foo": 1}},
]


UNUSABLE = [
    {"do_sample": "yes"},
    {"do_sample": True, "temperature": "hot"},
    {"do_sample": True, "temperature": -0.5},
    {"do_sample": True, "temperature": 0.0},
    {"do_sample": True, "top_p": 7.0},
    {"do_sample": True, "top_k": -5},
    {"do_sample": True, "min_p": 2.0},
    {"repetition_penalty": -1.5},
    {"repetition_penalty": 2},
    {"repetition_penalty": "high"},
    {"no_repeat_ngram_size": 1.5},
    {"no_repeat_ngram_size": -2},
    {"num_beams": 0},
    {"num_beams": 1_000_000},
    {"num_beams": "two"},
    {"use_cache": "no"},
    {"max_length": -5},
    {"max_length": 20.5},
    {"min_new_tokens": "many"},
    {"max_time": "soon"},
    {"max_time": -1},
    {"stop_strings": [3]},
    {"bad_words_ids": [7]},
    {"bad_words_ids": [["a"]]},
    {"suppress_tokens": [999_999]},
    {"forced_eos_token_id": 999_999},
    {"exponential_decay_length_penalty": [1, "x"]},
    {"exponential_decay_length_penalty": [1]},
    {"sequence_bias": [[[3], "x"]]},
    {"sequence_bias": {"3": 1.0}},
    {"guidance_scale": "strong"},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"num_beam_groups": 2, "num_beams": 4},
    {"dola_layers": "high"},
    {"output_scores": 1},
    {"return_dict_in_generate": "yes"},
]
"""Values that ``generate`` would refuse, or take for others."""


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


@pytest.mark.parametrize("changes", UNUSABLE, ids=str)
def test_settings_with_which_no_answer_can_be_made_are_named_by_every_verb(workspace, changes):
    settings_of(workspace / "model", changes)
    recipe = make_recipe(workspace)
    for verb in (
        lambda: run(recipe),
        lambda: describe(recipe),
        lambda: upcycle_folder(str(workspace / "model"), workspace / "out"),
        lambda: load_model(workspace / "model"),
    ):
        with pytest.raises(ValueError, match=f"model: its generation_config.json .*{'|'.join(changes)}") as caught:
            verb()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert not (workspace / "run").exists() and not (workspace / "out").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05},
        {"num_beams": 3, "length_penalty": 0.8, "early_stopping": True},
        {"do_sample": True, "min_p": 0.05, "max_new_tokens": 2048, "renormalize_logits": True},
        {"bad_words_ids": [[3], [4, 5]], "suppress_tokens": [6, 7], "no_repeat_ngram_size": 3},
        {"forced_eos_token_id": 2, "stop_strings": ["\n\n"], "cache_implementation": "static", "max_length": 20},
        {"exponential_decay_length_penalty": [10, 1.05], "watermarking_config": {"bias": 2.5}, "use_cache": False},
    ],
    ids=str,
)
def test_settings_that_are_good_stay(workspace, changes):
    settings_of(workspace / "model", changes)
    kept = load_model(workspace / "model").generation_config.to_dict()
    assert all(name == "watermarking_config" or kept[name] == value for name, value in changes.items())


def test_odd_values_that_nothing_reads_are_dropped_and_lists_are_no_begin(workspace):
    settings_of(workspace / "model", {"do_sample": False, "top_k": -1})
    assert load_model(workspace / "model")
    settings_of(workspace / "model", {"bos_token_id": [1]})
    with pytest.raises(ValueError, match=r"generation_config.json has bos_token_id \[1\]; it must be one whole number"):
        load_model(workspace / "model")


def test_every_setting_is_used_or_named(workspace):
    """Whatever stands in a field, the model answers with it or the field is named; no field is left out."""
    fields = sorted(vars(GenerationConfig()).keys() - {"transformers_version", "_from_model_config"})
    refused = 0
    for name in fields:
        for value in ("x", -1, [], {}, [[]], True, 1.5, float("inf"), 10**9):
            (workspace / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, name: value}))
            try:
                model = load_model(workspace / "model")
            except ValueError as error:
                assert "generation_config.json" in str(error) and name in str(error), (name, value, str(error))
                refused += 1
                continue
            for other in _NOT_TRIED:
                setattr(model.generation_config, other, None)
            model.generate(**{key: tensor[:, -6:] for key, tensor in TEXT.items()}, max_new_tokens=2)
    assert refused > 3 * len(fields)


def test_a_misspelt_setting_is_named(workspace, caplog):
    settings_of(workspace / "model", {"temprature": 0.7})
    load_model(workspace / "model")
    assert "does not know: temprature. Did you mean temperature?" in caplog.text


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
