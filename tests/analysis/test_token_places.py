"""Where a token lies: of a picture with one bright patch, the token that sees it is the one whose place holds it."""

import pytest
import torch
from PIL import Image
from tiny import FAMILIES, inputs_for, make, make_tokenizer
from transformers import (
    CLIPImageProcessorPil,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
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


@pytest.mark.parametrize("where", [(0.05, 0.05), (0.95, 0.05), (0.3, 0.7), (0.95, 0.95)])
@pytest.mark.parametrize("size", [(64, 64), (64, 32), (20, 20)])
def test_named_tiles_and_the_whole_beside_them(size, where):
    """Idefics 3's own processor and a connector that joins patches as it does."""
    tokenizer = make_tokenizer()
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokenizer.add_tokens(
        ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *tiles], special_tokens=True
    )
    splits = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = Idefics3Processor(splits, tokenizer, image_seq_len=4)
    picture = Image.new("RGB", size, "gray")
    x, y = (min(int(at * side), side - 3) for at, side in zip(where, size, strict=True))
    picture.paste((255, 255, 255), (x, y, x + 3, y + 3))
    inputs = processor(text=["<image> what?"], images=[[picture]], return_tensors="pt")
    ids = inputs["input_ids"][0]
    places = token_places(ids, [processor.image_token_id], 1, inputs, processor.tokenizer.decode)
    tiles_NCHW = inputs["pixel_values"][0].float()
    brightness = torch.cat(
        [cell.mean().view(1) for tile in tiles_NCHW for row in tile.mean(0).chunk(2) for cell in row.chunk(2, 1)]
    )
    found = [place for place in places if place is not None]
    assert len(found) == len(brightness) == 4 * len(tiles_NCHW)
    for of_whole in (False, True):
        kind = [number for number, place in enumerate(found) if place.of_whole == of_whole]
        if not kind:
            assert of_whole and len(tiles_NCHW) == 1  # a small picture is seen whole alone
            continue
        place = found[max(kind, key=lambda number: float(brightness[number]))]
        at_x, at_y = (x + 1.5) / size[0], (y + 1.5) / size[1]
        assert place.left - 0.06 <= at_x <= place.right + 0.06 and place.top - 0.06 <= at_y <= place.bottom + 0.06


def test_idefics_3_joins_patches_row_by_row():
    """The token of a tile in which one patch alone is not zero is the one whose place that patch has."""
    connector = make("idefics3").model.connector
    scale, width = connector.scale_factor, connector.modality_projection.proj.in_features // connector.scale_factor**2
    side = 2 * scale
    for row, column in ((0, 0), (0, side - 1), (side - 1, 0), (side - 1, side - 1)):
        patches = torch.zeros(1, side * side, width)
        patches[0, row * side + column] = 1
        with torch.no_grad():
            joined = connector(patches)[0].abs().sum(-1)
        assert int(joined.argmax()) == (row // scale) * 2 + column // scale


def test_lfm2_vl_names_tiles_and_says_the_shape_of_each():
    """Its processor needs torchvision; these are the names and shapes that it writes."""
    names = {1: "<|image_start|>", 2: "<|img_row_1_col_1|>", 3: "<|img_row_1_col_2|>", 4: "<|img_thumbnail|>", 9: "word"}

    def places(ids: list[int], shapes: list[list[int]], pictures: int = 1) -> list[Place | None]:
        inputs = {"spatial_shapes": torch.tensor(shapes)}
        return token_places(torch.tensor(ids), [IMAGE], pictures, inputs, lambda ids: names.get(ids[0], ""))

    found = places([9, 1, 2, *[IMAGE] * 4, 3, *[IMAGE] * 4, 4, *[IMAGE] * 2], [[4, 4], [4, 4], [2, 4]])
    assert found[3] == Place(0, 0, 0, 0.25, 0.5) and found[8] == Place(0, 0.5, 0, 0.75, 0.5)
    assert found[-1] == Place(0, 0.5, 0, 1, 1, of_whole=True)
    assert places([1, *[IMAGE] * 9], [[5, 6]])[1] == Place(0, 0, 0, 1 / 3, 1 / 3)  # two patches a token, the last row of one


def test_tiles_without_a_whole_are_not_understood():
    names = {5: "<row_1_col_1>", 6: "<global-img>", 9: "word"}
    with pytest.raises(NoPlacesError, match="1 pictures, but the names of their tiles tell of 0"):
        token_places(torch.tensor([5, IMAGE, IMAGE, IMAGE, IMAGE]), [IMAGE], 1, {}, lambda ids: names[ids[0]])
    with pytest.raises(NoPlacesError, match="image tokens fill no square"):
        token_places(torch.tensor([6, IMAGE, IMAGE]), [IMAGE], 1, {}, lambda ids: names[ids[0]])
