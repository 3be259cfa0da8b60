"""The dense model from which the mini study starts: a few million parameters, trained on the mini world from nothing.

Its parts learn in the order in which those of a real one did. The tower learns to name what each cell of a picture holds; the decoder
learns exercises in words alone, then, in Stage I, captions and questions about pictures, with the library's own training.
"""

import argparse
import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from evomoe import mini
from evomoe.data.prompts import LETTER_ANSWER, SHORT_ANSWER
from evomoe.mini.sampling import LETTER
from evomoe.mini.scene import COLORS, GRID, PATTERNS, PEOPLE, SHAPES, SIZES, STYLES
from evomoe.mini.small_vlm import Architecture, build_processor, build_tower, build_vlm, optimise
from evomoe.recipe.options import StageOptions
from evomoe.recipe.recipe import Recipe
from evomoe.support.device import prepare
from evomoe.support.files import new_folder, write_text

VERSION = 1
"""Grows whenever a seed gives another model than before."""

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789=+-"
CELL_CLASSES = (len(SHAPES), len(COLORS), len(SIZES), len(CHARACTERS), len(CHARACTERS), 10, 1)
"""What a cell can hold, besides nothing: a shape, its colour and size, two letters side by side, a digit, a plus sign."""
PICTURE_CLASSES = (len(PATTERNS), len(STYLES), len(PEOPLE), 1)
"""What a picture can have, besides nothing: a pattern, a style, a person, a frame."""


WIDTHS = {"narrow": (64, 172), "": (96, 256), "wide": (128, 344)}
"""Hidden size and FFN size of the base model and of two others, for Table 9."""

# Batches of mixed lengths: with similar ones together, lettered choices of two and of four options would take turns, and nothing
# is learnt for hundreds of steps.
_LESSON = StageOptions(
    learning_rate=1e-3,
    batch_size=32,
    accumulation=1,
    train="text+projector",
    trainer={"train_sampling_strategy": "random", "weight_decay": 0.01},
)


@dataclass(frozen=True)
class BaseRecipe:
    """Every number that shapes the model or its training; steps are the optimiser's.

    Attributes:
        scaling_pictures: as many set the scale at which the fresh projector hands on what the tower sees.
        letters: how the decoder learns lettered choices.
        words: how it learns from words alone.
        pictures: Stage I.
        cycles: how often Stage I is gone through, each time from the peak of the learning rate down.
    """

    sizes: Architecture = field(default_factory=lambda: Architecture(vision_width=96, vision_layers=4, vocabulary=900))
    tower_steps: int = 1500
    tower_batch_size: int = 64
    tower_learning_rate: float = 2e-3
    scaling_pictures: int = 256
    letters: StageOptions = field(default_factory=lambda: replace(_LESSON, epochs=1.5))
    words: StageOptions = field(default_factory=lambda: replace(_LESSON, epochs=1.5))
    pictures: StageOptions = field(default_factory=lambda: replace(_LESSON, epochs=3.5))
    cycles: int = 2


UNTAUGHT = "untaught"
"""Folder of the model before its first lesson."""

SHIPPED = Path(__file__).with_name("bases")
"""The models that come with the package."""


def folder(width: str = "", seed: int = 0) -> Path:
    """Where the base model of this width with this seed is, or will be: in the package, or in the cache folder."""
    shipped = SHIPPED / _name(width, seed)
    return shipped if shipped.is_dir() else mini.cache() / _name(width, seed)


def ensure(width: str = "", seed: int = 0) -> Path:
    """The folder of the base model with this seed, trained on the first call unless it comes with the package."""
    home = folder(width, seed)
    return home if home.is_dir() else train(width, seed)


def _name(width: str, seed: int) -> str:
    parts = ["mini-base", width, f"v{VERSION}", f"world-v{mini.VERSION}", f"seed{seed}"]
    return "-".join(part for part in parts if part)


def train(width: str = "", seed: int = 0, root: str | os.PathLike[str] | None = None, recipe: BaseRecipe | None = None) -> Path:
    """Trains the base model with this seed into the cache folder, once; an interrupted training goes on.

    Args:
        width: A row of WIDTHS.
        seed: Decides the weights; the world is that of seed 0.
        root: Where it is kept; EVOMOE_CACHE, or ~/.cache/evomoe, by default.
        recipe: How it is trained, for tests.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    hidden_size, ffn_size = WIDTHS[width]
    sizes = replace(BaseRecipe().sizes, hidden_size=hidden_size, ffn_size=ffn_size)
    recipe, home = recipe or BaseRecipe(sizes), mini.cache(root) / _name(width, seed)
    if home.is_dir():
        return home
    world = mini.ensure(0, root)
    work = home.with_name(f"{home.name}.partial")
    with _two_threads():
        model = _teach(work, world, seed, recipe)
    write_text(model / "base_recipe.json", json.dumps(asdict(recipe) | {"seed": seed}, indent=2) + "\n")
    os.replace(model, home)
    shutil.rmtree(work)
    return home


@contextlib.contextmanager
def _two_threads() -> Iterator[None]:
    """The order of sums, and so the weights, depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _teach(work: Path, world: Path, seed: int, recipe: BaseRecipe) -> Path:
    """Lesson after lesson, each in a folder of its own; returns the last one's model."""
    model = work / UNTAUGHT
    if not model.is_dir():
        _assemble(model, world, seed, recipe)
    # Each cycle has an order of its own.
    cycles = [("stage1", recipe.pictures, seed + cycle) for cycle in range(recipe.cycles)]
    for number, (name, options, order) in enumerate([("letters", recipe.letters, seed), ("words", recipe.words, seed), *cycles]):
        model = _learn(model, world / "train" / f"{name}.json", work / f"{number}_{name}", options, order)
    return model


def _learn(model: Path, data: Path, output: Path, options: StageOptions, seed: int) -> Path:
    from evomoe.paper.study.shared_inputs import training_data
    from evomoe.training.run import run

    recipe = Recipe(
        str(model),
        str(data),
        str(output),
        image_root=str(data.parent / "images"),
        stages=(1,),
        stage1=options,
        seed=seed,
        max_length=512,
    )
    datasets = {1: training_data(recipe, output.parent / UNTAUGHT)}
    return run(recipe, resume="known", report=False, label=output.name, datasets=datasets)


def _assemble(folder: Path, world: Path, seed: int, recipe: BaseRecipe) -> None:
    """Trains the tower and joins it with a fresh projector and decoder."""
    torch.manual_seed(seed)
    prepare(torch.device("cpu"))
    files = [world / "train" / f"{name}.json" for name in ("letters", "words", "stage1", "stage2")]
    turns = [turn["value"] for file in files for record in json.loads(file.read_text()) for turn in record["conversations"]]
    texts = (text.replace("<image>", "") for text in turns)
    processor = build_processor(texts, recipe.sizes, numerals_apart=True, phrases=(SHORT_ANSWER, LETTER_ANSWER))
    pixels_NHWC, cells_NCL, pictures_NL = labelled_pictures(world)
    tower = train_tower(pixels_NHWC, cells_NCL, pictures_NL, processor, recipe)
    few_NCHW = _normalised(pixels_NHWC[: recipe.scaling_pictures], processor)
    model = build_vlm(tower, processor, few_NCHW, recipe.sizes)
    with new_folder(folder) as home:
        model.save_pretrained(home)
        processor.save_pretrained(home)


def labelled_pictures(world: Path) -> tuple[Tensor, Tensor, Tensor]:
    """All training pictures (N, H, W, 3) in bytes, labels of their cells (N, GRID², 7) and of themselves (N, 4)."""
    pixels, cells, pictures = [], [], []
    for stage in ("stage1", "stage2"):
        for name, scene in json.loads((world / "train" / f"{stage}_scenes.json").read_text()).items():
            with Image.open(world / "train" / "images" / name) as image:
                pixels.append(torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8))
                height, width = image.height, image.width
            cells.append(cell_labels(scene))
            pictures.append(picture_labels(scene))
    return torch.stack(pixels).view(-1, height, width, 3), torch.tensor(cells), torch.tensor(pictures)


def cell_labels(scene: dict[str, Any]) -> list[list[int]]:
    """A label of each of CELL_CLASSES for each cell, row by row; 0 is nothing."""
    cells = [[0] * len(CELL_CLASSES) for _ in range(GRID * GRID)]
    for thing in scene["things"]:
        known = (SHAPES.index(thing["shape"]), COLORS.index(thing["color"]), SIZES.index(thing["size"]))
        cells[thing["row"] * GRID + thing["column"]][:3] = [number + 1 for number in known]
    for writing in scene["writings"]:
        for number, character in enumerate(writing["text"]):
            place = writing["start"] // LETTER + number
            if place < 2 * GRID:
                cells[writing["row"] * GRID + place // 2][3 + place % 2] = CHARACTERS.index(character) + 1
    for digit in scene["digits"]:
        cells[digit["row"] * GRID + digit["column"]][5] = digit["value"] + 1
    if scene["plus"]:
        cells[scene["digits"][0]["row"] * GRID + scene["digits"][0]["column"] + 1][6] = 1
    return cells


def picture_labels(scene: dict[str, Any]) -> list[int]:
    """A label of each of PICTURE_CLASSES; 0 is nothing."""
    person = list(PEOPLE).index(scene["person"]) + 1 if scene["person"] else 0
    return [PATTERNS.index(scene["pattern"]) + 1, STYLES.index(scene["style"]) + 1, person, int(scene["framed"])]


def train_tower(
    pixels_NHWC: Tensor,
    cells_NCL: Tensor,
    pictures_NL: Tensor,
    processor: transformers.LlavaProcessor,
    recipe: BaseRecipe,
) -> transformers.SiglipVisionModel:
    """Trains a tower to name what each cell holds from its feature, and the picture's from the mean feature, by linear heads."""
    tower = build_tower(recipe.sizes)
    heads = nn.ModuleList(nn.Linear(recipe.sizes.vision_width, classes + 1) for classes in (*CELL_CLASSES, *PICTURE_CLASSES))

    def losses() -> Iterator[Tensor]:
        while True:
            rows_B = torch.randint(len(pixels_NHWC), (recipe.tower_batch_size,))
            features_BCD = tower(_normalised(pixels_NHWC[rows_B], processor)).last_hidden_state
            seen = [features_BCD.flatten(0, 1)] * len(CELL_CLASSES) + [features_BCD.mean(1)] * len(PICTURE_CLASSES)
            labels = [*cells_NCL[rows_B].flatten(0, 1).unbind(1), *pictures_NL[rows_B].unbind(1)]
            asked = zip(heads, seen, labels, strict=True)
            yield torch.stack([functional.cross_entropy(head(feature), label) for head, feature, label in asked]).sum()

    optimise("vision tower", [*tower.parameters(), *heads.parameters()], losses(), recipe.tower_steps, recipe.tower_learning_rate)
    return tower


def _normalised(pixels_NHWC: Tensor, processor: transformers.LlavaProcessor) -> Tensor:
    """As the processor hands pictures of their size to the tower (N, 3, H, W)."""
    mean, std = (torch.tensor(getattr(processor.image_processor, name)) for name in ("image_mean", "image_std"))
    return ((pixels_NHWC / 255 - mean) / std).permute(0, 3, 1, 2)


def main() -> None:
    """Trains the mini study's base model, once, into the cache folder, and says where it is; the one that ships was made so."""
    parser = argparse.ArgumentParser(prog="python -m evomoe.paper.study.base_model", description=main.__doc__)
    parser.add_argument("--width", choices=list(WIDTHS), default="", help="another size of the decoder, for Table 9")
    parser.add_argument("--seed", type=int, default=0, help="decides the weights (default 0)")
    arguments = parser.parse_args()
    print(train(arguments.width, arguments.seed))


if __name__ == "__main__":
    main()
