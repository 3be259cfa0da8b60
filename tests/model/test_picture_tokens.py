"""A processor makes as many image tokens of a picture as its model makes features of it, or all verbs say the same sentence."""

import json
from types import SimpleNamespace

import pytest
import torch
from tiny import FAMILIES, IMAGE_TOKEN, inputs_for, make

from evomoe import cli
from evomoe.model.loading import empty_model, load_config
from evomoe.model.picture_tokens import check_picture_tokens, count_features
from evomoe.recipe.recipe import Recipe
from evomoe.training.checked_run import check_run

PROCESSOR, CONFIG = "processor_config.json", "config.json"


def recipe_of(workspace) -> Recipe:
    return Recipe(str(workspace / "model"), str(workspace / "data.json"), str(workspace / "run"), stages=(1,))


def put(folder, file: str, value, *path: str) -> None:
    held = json.loads((folder / file).read_text())
    inner = held
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    (folder / file).write_text(json.dumps(held))


@pytest.mark.parametrize("family", [name for name, one in FAMILIES.items() if IMAGE_TOKEN in one.image and name != "mllama"])
def test_every_family_s_features_are_counted_without_weights(family):
    torch.manual_seed(0)
    model, pixels = FAMILIES[family].model(), FAMILIES[family].pixels([1], torch.Generator().manual_seed(0))
    count = FAMILIES[family].image.count(IMAGE_TOKEN)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert count_features(model, pixels) == count
    assert count_features(empty_model(model.config), pixels) == count
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_no_product_is_computed():
    """A tower whose weights would take 48 terabytes is asked in no time."""
    config = FAMILIES["llava"].model().config
    config.vision_config.hidden_size = config.vision_config.intermediate_size = 10**6
    assert count_features(empty_model(config), {"pixel_values": torch.zeros(1, 3, 16, 16)}) == 4


def test_one_layer_of_a_stack_stands_for_all(monkeypatch):
    """A deep tower of large pictures takes as long as a flat one: attention is costly even where products are left out."""
    config = FAMILIES["llava"].model().config
    config.vision_config.num_hidden_layers = 30
    model, ran = empty_model(config), []
    layers = [module for name, module in model.named_modules() if name.endswith("self_attn") and "vision" in name]
    for layer in layers:
        own = type(layer).forward
        monkeypatch.setattr(
            layer, "forward", lambda *args, layer=layer, own=own, **kw: ran.append(layer) or own(layer, *args, **kw)
        )
    assert count_features(model, {"pixel_values": torch.zeros(1, 3, 16, 16)}) == 4
    assert len(layers) == 30 and len(ran) == 1
    assert not any("forward" in vars(module) for module in model.modules() if module not in layers)


@pytest.mark.parametrize(
    ("file", "value", "path", "told"),
    [
        (PROCESSOR, 4, ("patch_size",), "its processor makes 16 image tokens of a picture, and its model makes 4 features of it"),
        (PROCESSOR, 16, ("patch_size",), "its processor makes 1 image token of a picture, and its model makes 4 features of it"),
        (PROCESSOR, 0, ("patch_size",), "its processor has patch_size 0, which must be at least 1"),
        (PROCESSOR, "8", ("patch_size",), "its processor cannot process a picture of 64 x 64 pixels"),
        (PROCESSOR, "default", ("vision_feature_select_strategy",), "its processor makes 3 image tokens"),
        (PROCESSOR, "odd", ("vision_feature_select_strategy",), "vision_feature_select_strategy 'odd'; choose default or full"),
        (PROCESSOR, 3, ("num_additional_image_tokens",), "its processor makes 7 image tokens"),
        (PROCESSOR, {"height": 32, "width": 32}, ("image_processor", "size"), "its model cannot take what its processor makes"),
        (PROCESSOR, "<|user|>", ("image_token",), "its processor writes a picture as '<|user|>', number 4"),
        (PROCESSOR, [0.5] * 4, ("image_processor", "image_mean"), "its processor cannot process a picture"),
        (PROCESSOR, "x", ("image_processor", "image_mean"), "its processor has image_mean 'x'"),
        (CONFIG, "full", ("vision_feature_select_strategy",), "its model makes 5 features"),
        (CONFIG, 32, ("vision_config", "image_size"), "its model cannot take what its processor makes of a picture"),
        (CONFIG, 4, ("vision_config", "patch_size"), "its model makes 16 features"),
        (CONFIG, 4, ("vision_config", "num_channels"), "its model cannot take what its processor makes of a picture"),
        (CONFIG, 5, ("image_token_id",), "number 120, and its config.json has image_token_id 5"),
    ],
)
def test_a_processor_of_another_model_is_refused_before_anything_is_loaded(workspace, capsys, file, value, path, told):
    put(workspace / "model", file, value, *path)
    (workspace / "model" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="model: ") as refused:
        check_run(recipe_of(workspace))
    assert told in str(refused.value) and str(workspace / "model") in str(refused.value)
    for arguments in (["chat", "--prompt", "what ?"], ["eval", "--benchmarks", "mini-pope"]):
        assert cli.main([arguments[0], str(workspace / "model"), *arguments[1:]]) == 1
        assert str(refused.value) in capsys.readouterr().err


def test_the_sizes_of_both_are_told(workspace):
    put(workspace / "model", PROCESSOR, 4, "patch_size")
    with pytest.raises(ValueError, match=r"patch_size 4, .*size height 16 width 16; .*vision_config.patch_size 8") as refused:
        check_run(recipe_of(workspace))
    assert str(refused.value).endswith("Take the model's own processor, or make them agree.")


def test_a_family_that_cannot_be_asked_is_let_pass(workspace, monkeypatch):
    from evomoe.model.loading import load_processor

    processor, model = load_processor(workspace / "model"), empty_model(load_config(workspace / "model"))

    def in_another_way(pixel_values, of_another_kind):
        raise AssertionError

    monkeypatch.setattr(model, "get_image_features", in_another_way)
    check_picture_tokens(processor, model, "model")


class Prepared:
    """A processor that has prepared its picture already."""

    image_token = "<image>"
    image_processor = SimpleNamespace()
    tokenizer = SimpleNamespace(convert_tokens_to_ids=lambda token: IMAGE_TOKEN)

    def __init__(self, inputs: dict) -> None:
        self.inputs = inputs

    def __call__(self, **options) -> dict:
        return dict(self.inputs)


KINDS = ["llava", "llava-next", "idefics2", "qwen2-vl", "qwen3-vl", "internvl", "mistral3", "mllama", "lfm2-vl"]
"""Families whose processors make something of a kind of its own."""


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_s_model_cannot_take_of_another_s_processor_is_refused_before_a_run(family):
    model, refused = make(family), []
    check_picture_tokens(Prepared(inputs_for(family, (1,))), empty_model(model.config), "folder")
    for other in KINDS:
        inputs = inputs_for(other, (1,))
        try:
            with torch.no_grad():
                model(**inputs)
            continue
        except Exception:
            refused.append(other)
        with pytest.raises(ValueError, match="^folder: its (model cannot take what|processor makes)"):
            check_picture_tokens(Prepared(inputs), empty_model(model.config), "folder")
            pytest.fail(f"what {other} makes was let pass beside {family}")
    assert len(refused) >= 3
