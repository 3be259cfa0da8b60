"""Features that are kept and handed on must be those that the model would have computed."""

import pytest
import torch
import transformers
from packaging import version
from tiny import FAMILIES, QUICK, inputs_for, make

from evomoe.evaluation.encode_once import EncodeOnce

# Ovis2's output has a part that belongs to no picture; Mllama's pictures enter by cross-attention.
NOT_SHARED = {"ovis2", "mllama"}
if version.parse(transformers.__version__) < version.parse("5.23"):
    NOT_SHARED |= {"idefics2", "qwen3-vl"}  # their outputs are of another form in 5.16; between the two it is not known


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in FAMILIES],
)
def test_kept_features_change_no_logit(family):
    model, inputs = make(family), inputs_for(family, (1, 1))
    real = inputs["attention_mask"].bool()
    with torch.inference_mode():
        expected = model(**inputs).logits[real]
        once = EncodeOnce(model)
        with once.active():
            once.keys = ["a", "b"]
            for _ in range(2):
                torch.testing.assert_close(model(**inputs).logits[real], expected, atol=1e-5, rtol=1e-4)
    assert (once.encoded == 2) is (family not in NOT_SHARED)


# Patches that merge to 4, 8 and 1 tokens, and pictures that cover more or less of their tiles: no two give equally many
# features, so that a share of equal size would be a wrong one.
GRIDS = {"a": [1, 4, 4], "b": [1, 4, 8], "c": [1, 2, 2]}
SIZES = {"a": [16, 32], "b": [16, 16], "c": [32, 8]}


def unequal_pictures(family: str) -> dict[str, dict[str, torch.Tensor]]:
    """What the encoder is given for each of three pictures."""
    generator = torch.Generator().manual_seed(1)
    if family == "llava-next":
        tiles = torch.randn(3, 1, 3, 3, 16, 16, generator=generator)
        sizes = [torch.tensor([size]) for size in SIZES.values()]
        return {name: {"pixel_values": tiles[i], "image_sizes": sizes[i]} for i, name in enumerate(SIZES)}
    width = inputs_for(family, (1,))["pixel_values"].shape[1]
    patches = {name: torch.randn(h * w, width, generator=generator) for name, (_, h, w) in GRIDS.items()}
    return {name: {"pixel_values": patches[name], "image_grid_thw": torch.tensor([grid])} for name, grid in GRIDS.items()}


@pytest.mark.parametrize("family", ["qwen2-vl", "qwen3-vl", "llava-next"])
def test_pictures_of_unequal_sizes_keep_their_own_features(family):
    if family in NOT_SHARED:
        pytest.skip("its output has no share of a picture here")
    model, pictures = make(family), unequal_pictures(family)

    def encode(*names: str) -> list[list[torch.Tensor]]:
        """For every picture its features, and those of each layer that go with them."""
        given = {key: torch.cat([pictures[name][key] for name in names]) for key in pictures["a"]}
        output = model.base_model.get_image_features(**given, return_dict=True)
        layers = getattr(output, "deepstack_features", None) or []
        return [list(parts) for parts in zip(output.pooler_output, *layers, strict=True)]

    with torch.inference_mode():
        alone = {name: encode(name)[0] for name in pictures}
        assert len({len(features[0]) for features in alone.values()}) == 3
        once = EncodeOnce(model)
        with once.active():
            for names, encoded in ((("a", "b", "a"), 2), (("c", "b"), 3), (("b", "c", "a"), 3)):
                once.keys = names
                for name, features in zip(names, encode(*names), strict=True):
                    torch.testing.assert_close(features, alone[name], atol=1e-5, rtol=1e-4)
                assert once.encoded == encoded


def test_pictures_are_told_apart_and_the_oldest_are_forgotten(llava):
    inputs = inputs_for("llava", (1, 1, 1))
    pixels = inputs["pixel_values"]
    with torch.inference_mode():
        once = EncodeOnce(llava, remembered=2)
        with once.active():

            def features(*names: str) -> list[torch.Tensor]:
                once.keys = names
                rows = torch.stack([pixels["abc".index(name)] for name in names])
                return list(llava.base_model.get_image_features(pixel_values=rows, return_dict=True).pooler_output)

            a, b, again = features("a", "b", "a")
            assert once.encoded == 2 and torch.equal(a, again) and not torch.equal(a, b)
            (c,) = features("c")
            assert once.encoded == 3 and not torch.equal(c, b)
            (again,) = features("a")  # the latest of the first batch
            assert once.encoded == 3 and torch.equal(a, again)
            (again,) = features("b")  # forgotten, and encoded in a batch of another size
            assert once.encoded == 4
            torch.testing.assert_close(b, again)
