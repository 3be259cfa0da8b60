"""Where a token lies: of a picture with one bright patch, the token that sees it is the one whose place holds it."""

import pytest
import torch
from PIL import Image
from tiny import FAMILIES, inputs_for, make
from transformers import (
    CLIPImageProcessorPil,
    PixtralImageProcessorPil,
    Qwen2VLImageProcessorPil,
    SiglipImageProcessorPil,
)

from evomoe.analysis.token_places import NoPlacesError, Place, token_grids, token_places
from evomoe.data.images import Shape

IMAGE = 7
GRIDS = {
    # image processor, size of the picture, its tokens in height and width
    "siglip": (SiglipImageProcessorPil(size={"height": 64, "width": 64}), (64, 64), (4, 4)),
    "siglip, oblong": (SiglipImageProcessorPil(size={"height": 64, "width": 64}), (128, 64), (4, 4)),
    "clip, padded": (CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}), (128, 64), (4, 4)),
    "qwen2-vl": (Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=112 * 112), (112, 56), (2, 4)),
    "pixtral": (PixtralImageProcessorPil(size={"longest_edge": 64}, patch_size={"height": 16, "width": 16}), (64, 32), (2, 4)),
}  # fmt: skip


class Holder:
    def __init__(self, image_processor) -> None:
        self.image_processor = image_processor


def seen(processor, picture: Image.Image, grid: tuple[int, int]) -> tuple[torch.Tensor, dict]:
    """The mean colour of what each token stands for, by the pixels that the processor hands on; and these inputs."""
    H, W = grid
    inputs = dict(processor(images=[picture], return_tensors="pt"))
    pixels = inputs["pixel_values"]
    if "image_grid_thw" in inputs:  # patches in blocks of four, of which each becomes a token
        return pixels.float().view(H * W, -1).mean(-1), inputs
    pixels = pixels[0].float().mean(0)
    return torch.stack([cell.mean() for row in pixels.chunk(H) for cell in row.chunk(W, dim=1)]), inputs


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("where", [(0.1, 0.1), (0.9, 0.1), (0.4, 0.6), (0.9, 0.9)])
def test_the_token_that_sees_the_bright_patch_has_its_place(kind, where):
    processor, (width, height), grid = GRIDS[kind]
    x, y = where
    picture = Image.new("RGB", (width, height), "gray")
    left, top = int(x * width), int(y * height)
    picture.paste((255, 255, 255), (left - 2, top - 2, left + 2, top + 2))
    given = Shape(Holder(processor), "auto").fit(picture)
    brightness_V, inputs = seen(processor, given, grid)
    ids = torch.tensor([1, *[IMAGE] * len(brightness_V), 2])
    places = token_places(ids, [IMAGE], 1, inputs)
    assert places[0] is places[-1] is None and len(places) == len(ids)
    place = places[1 + int(brightness_V.argmax())]
    # The picture is in the middle of the square that it was padded to.
    x, y = ((offset + at) / side for offset, at, side in zip(
        ((given.width - width) // 2, (given.height - height) // 2), (left, top), given.size, strict=True))  # fmt: skip
    assert place.left <= x + 0.02 and x - 0.02 <= place.right and place.top <= y + 0.02 and y - 0.02 <= place.bottom


def test_several_pictures_follow_one_another():
    grids = {"image_grid_thw": torch.tensor([[1, 4, 8], [1, 4, 4]])}
    ids = torch.tensor([1, *[IMAGE] * 8, 2, *[IMAGE] * 4, 3])
    places = token_places(ids, [IMAGE], 2, grids)
    assert places[1] == Place(0, 0, 0, 0.25, 0.5) and places[8] == Place(0, 0.75, 0.5, 1, 1)
    assert places[10] == Place(1, 0, 0, 0.5, 0.5) and places[9] is None
    assert token_places(torch.tensor([1, 2]), [IMAGE], 0, {}) == [None, None]


WRONG = {
    "no square": (5, 1, {}, "5 image tokens, which fill no squares"),
    "no grid": (9, 1, {"image_grid_thw": torch.tensor([[1, 2, 8]])}, "fill no grids like 2 x 8"),
    "tiles": (16, 1, {"pixel_values": torch.zeros(4, 3, 8, 8)}, "cuts pictures into tiles"),
    "tiles of a picture": (16, 1, {"pixel_values": torch.zeros(1, 4, 3, 8, 8)}, "cuts pictures into tiles"),
    "a square by chance": (36, 1, {"pixel_values": torch.zeros(1, 3, 8, 18), "image_sizes": torch.tensor([[7, 18]])}, "fill no grids"),
    "fewer sizes": (8, 2, {"image_grid_thw": torch.tensor([[1, 4, 8]])}, "2 pictures, but the processor tells the sizes of 1"),
}  # fmt: skip


@pytest.mark.parametrize(("count", "pictures", "inputs", "words"), WRONG.values(), ids=WRONG)
def test_what_has_no_place_is_said(count, pictures, inputs, words):
    with pytest.raises(NoPlacesError, match=words):
        token_grids(count, pictures, inputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_places_or_says_why_not(family):
    inputs = inputs_for(family, (1,))
    tiled = {"llava-next", "llava-onevision", "idefics2", "idefics3", "smolvlm", "mllama", "lfm2-vl"}
    count = int((inputs["input_ids"] == make(family).config.image_token_id).sum()) if family != "mllama" else 1
    if family in tiled:
        with pytest.raises(NoPlacesError):
            token_grids(count, 1, inputs)
    else:
        ((H, W),) = token_grids(count, 1, inputs)
        assert count == H * W
