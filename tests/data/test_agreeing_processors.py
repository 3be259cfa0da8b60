"""Real processors of several families beside models of the same sizes pass the check of pictures; of another size they do not."""

from itertools import permutations

import pytest
from tiny import FAMILIES

from evomoe.model.loading import empty_model
from evomoe.model.picture_tokens import check_picture_tokens

SIZES = {
    "llava": {"image_token_id": 4, "vision_config.image_size": 32},
    "qwen2_vl": {"image_token_id": 5, "vision_config.patch_size": 14},
    "idefics3": {"image_token_id": 4, "vision_config.image_size": 32, "scale_factor": 2},
    "idefics2": {"image_token_id": 4, "vision_config.image_size": 64},
    "gemma3": {"image_token_id": 9, "vision_config.image_size": 32},
}
OTHERS = {
    "llava": ("vision_config.patch_size", 16),
    "qwen2_vl": ("vision_config.patch_size", 16),
    "idefics3": ("scale_factor", 1),
    "idefics2": ("perceiver_config.resampler_n_latents", 8),
    "gemma3": ("mm_tokens_per_image", 16),
}


def model_of(family: str, **changes):
    config = FAMILIES[family.replace("_", "-")].model().config
    for name, value in (SIZES[family] | changes).items():
        *parts, last = name.split(".")
        inner = config
        for part in parts:
            inner = getattr(inner, part)
        setattr(inner, last, value)
    return empty_model(config)


@pytest.mark.parametrize("family", SIZES)
def test_a_processor_and_its_model_agree(make_processor, family):
    check_picture_tokens(make_processor(family), model_of(family), "folder")


@pytest.mark.parametrize("family", SIZES)
def test_a_model_of_another_size_is_told_from_it(make_processor, family):
    field, value = OTHERS[family]
    with pytest.raises(ValueError, match="^folder: its (processor makes .*, and its model makes|model cannot take)"):
        check_picture_tokens(make_processor(family), model_of(family, **{field: value}), "folder")


@pytest.mark.parametrize("family", SIZES)
def test_a_model_that_knows_pictures_under_another_number_is_told(make_processor, family):
    with pytest.raises(
        ValueError, match="^folder: its processor writes a picture as .* and its config.json has image_token_id 40"
    ):
        check_picture_tokens(make_processor(family), model_of(family, image_token_id=40), "folder")


@pytest.mark.parametrize(
    ("family", "other"),
    [pair for pair in permutations(SIZES, 2) if pair != ("idefics3", "idefics2")],  # which take alike pictures
)
def test_a_processor_beside_a_model_of_another_family(make_processor, family, other):
    """The number of the image token is the processor's, so that nothing but the picture tells them apart."""
    with pytest.raises(ValueError, match="^folder: its (processor makes .*, and its model makes|model cannot take)"):
        check_picture_tokens(make_processor(family), model_of(other, image_token_id=SIZES[family]["image_token_id"]), "folder")
