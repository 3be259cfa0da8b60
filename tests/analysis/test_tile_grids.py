"""Where tokens of tiles lie: of a picture with one bright patch, the token that sees it is the one whose place holds it.

The image processors are transformers' own, and what joins a picture's tiles is the model's own code.
"""

from types import SimpleNamespace

import pytest
import torch
import transformers
from PIL import Image
from tiny import make

from evomoe.analysis.tile_grids import LAYOUTS, tile_grids
from evomoe.analysis.token_places import NoPlacesError, Place, token_places

IMAGE = 7
SIDE, PATCH = 32, 8
PER_TILE = SIDE // PATCH
PINPOINTS = [[32, 64], [64, 32], [64, 64], [32, 96], [96, 32]]
SQUARE = {"height": SIDE, "width": SIDE}
TILED = {"size": SQUARE, "crop_to_patches": True, "min_patches": 1, "max_patches": 6}


def processor(kind: str, image_processor, **fields):
    """The family's processor with no more than what the layout asks; some want torchvision to be made whole."""
    made = object.__new__(getattr(transformers, kind))
    vars(made).update(image_processor=image_processor, **fields)
    return made


def anyres(kind: str, model: str, strategy: dict, **fields):
    images = getattr(transformers, kind.replace("Processor", "ImageProcessorPil"))(
        size={"shortest_edge": SIDE} if kind == "LlavaNextProcessor" else SQUARE,
        crop_size=SQUARE,
        image_grid_pinpoints=PINPOINTS,
        do_normalize=False,
    )
    sparse = make(model).model
    sparse.config.image_grid_pinpoints = PINPOINTS
    sparse.config.vision_config.image_size, sparse.config.vision_config.patch_size = SIDE, PATCH

    def joined(inputs: dict) -> torch.Tensor:
        tiles = [torch.stack([cells(tile).view(-1, 1) for tile in picture]) for picture in inputs["pixel_values"]]
        packed, _ = sparse.pack_image_features(tiles, inputs["image_sizes"], image_newline=torch.zeros(1), **strategy)
        return packed.squeeze(-1) if isinstance(packed, torch.Tensor) else torch.cat([one.squeeze(-1) for one in packed])

    return processor(kind, images, patch_size=PATCH, **fields), joined


def tiles(kind: str, image_processor: str, **fields):
    images = getattr(transformers, image_processor)(**TILED, do_normalize=False)
    return processor(kind, images, **fields), lambda inputs: torch.cat([cells(tile).flatten() for tile in inputs["pixel_values"]])


def cells(tile_CHW: torch.Tensor) -> torch.Tensor:
    """(PER_TILE, PER_TILE): how bright each patch is."""
    return tile_CHW.float().mean(0).unflatten(0, (PER_TILE, PATCH)).unflatten(2, (PER_TILE, PATCH)).mean((1, 3))


KINDS = {
    "llava-next": lambda: anyres("LlavaNextProcessor", "llava-next", {"vision_feature_select_strategy": "full"}),
    "llava-onevision": lambda: anyres(
        "LlavaOnevisionProcessor", "llava-onevision", {}, num_image_tokens=PER_TILE**2, vision_aspect_ratio="anyres_max_9"
    ),
    "llava-onevision, shrunk": lambda: anyres(
        "LlavaOnevisionProcessor",
        "llava-onevision",
        {"vision_aspect_ratio": "anyres_max_2"},
        num_image_tokens=PER_TILE**2,
        vision_aspect_ratio="anyres_max_2",
    ),
    "internvl": lambda: tiles("InternVLProcessor", "GotOcr2ImageProcessorPil"),
    "aya-vision": lambda: tiles("AyaVisionProcessor", "GotOcr2ImageProcessorPil"),
    "ovis2": lambda: tiles("Ovis2Processor", "Ovis2ImageProcessorPil", image_seq_length=PER_TILE**2),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", [(0.06, 0.06), (0.94, 0.06), (0.3, 0.7), (0.94, 0.94)])
@pytest.mark.parametrize("size", [(64, 64), (96, 40), (30, 80), (20, 20)])
def test_the_token_that_sees_the_bright_patch_has_its_place(kind, where, size):
    made, joined = KINDS[kind]()
    picture = Image.new("RGB", size, "black")
    x, y = (at * side for at, side in zip(where, size, strict=True))
    picture.paste((255, 255, 255), (int(x) - 2, int(y) - 2, int(x) + 2, int(y) + 2))
    inputs = dict(made.image_processor([picture], return_tensors="pt"))
    brightness_V = joined(inputs)
    ids = torch.tensor([1, *[IMAGE] * len(brightness_V), 2])
    places = token_places(ids, [IMAGE], 1, inputs, processor=made, sizes=[(picture.height, picture.width)])[1:-1]
    if not kind.startswith("llava"):
        assert None not in places
    at = (x / picture.width, y / picture.height)
    for of_whole in (True, False):
        kinds = [number for number, place in enumerate(places) if place is not None and place.of_whole == of_whole]
        if kinds:
            place = places[max(kinds, key=lambda number: float(brightness_V[number]))]
            assert place.left - 0.08 <= at[0] <= place.right + 0.08 and place.top - 0.08 <= at[1] <= place.bottom + 0.08
    assert any(place is not None and not place.of_whole for place in places)
    ends = [float(value) for value, place in zip(brightness_V, places, strict=True) if place is None]
    assert not any(ends)  # a line's end sees nothing


def test_onevision_sees_several_pictures_whole():
    made, _ = KINDS["llava-onevision"]()
    pixels = {"pixel_values": torch.zeros(2, 1, 3, SIDE, SIDE)}
    ids = torch.tensor([IMAGE] * 2 * (PER_TILE**2 + 1))
    places = token_places(ids, [IMAGE], 2, pixels, processor=made, sizes=[(64, 64), (40, 96)])
    assert places[0] == Place(0, 0, 0, 0.25, 0.25) and places[PER_TILE**2] is None and places[PER_TILE**2 + 1].picture == 1


def test_pictures_that_were_not_cut_are_one_tile_each():
    made, _ = KINDS["internvl"]()
    places = token_places(
        torch.tensor([IMAGE] * 32),
        [IMAGE],
        2,
        {"pixel_values": torch.zeros(2, 3, SIDE, SIDE)},
        processor=made,
        sizes=[(64, 96)] * 2,
    )
    assert places[16] == Place(1, 0, 0, 0.25, 0.25)


def test_other_numbers_of_tokens_than_the_tiles_have_are_refused():
    made, _ = KINDS["internvl"]()
    with pytest.raises(NoPlacesError, match="70 image tokens, where the processor's tiles would give 63"):
        pixels = {"pixel_values": torch.zeros(7, 3, SIDE, SIDE)}
        token_places(torch.tensor([IMAGE] * 70), [IMAGE], 1, pixels, processor=made, sizes=[(64, 96)])
    assert tile_grids(SimpleNamespace(), [(64, 64)], {}, 4) is None


@pytest.mark.parametrize("family", ["internvl", "aya-vision", "cohere2-vision"])
def test_models_join_patches_row_by_row(family):
    """The token of a tile in which one patch alone is not zero is the one whose place that patch has."""
    model = make(family).model
    for row, column in ((0, 0), (0, 3), (3, 0), (2, 1)):
        patches = torch.zeros(1, 4, 4, 8)
        patches[0, row, column] = 1
        internvl = family == "internvl"
        joined = (
            model.pixel_shuffle(patches, 0.5) if internvl else model.multi_modal_projector.pixel_shuffle(patches.flatten(1, 2))
        )
        assert int(joined.reshape(4, -1).abs().sum(-1).argmax()) == (row // 2) * 2 + column // 2


def test_the_layouts_are_of_processors_that_there_are():
    assert all(hasattr(transformers, name) for name in LAYOUTS)
