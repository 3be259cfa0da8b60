"""What the base model's tower is taught, and that it learns."""

import random
from dataclasses import asdict

import pytest
import torch

from evomoe.data.prompts import SHORT_ANSWER
from evomoe.mini.sampling import Handwriting, Sampler
from evomoe.mini.scene import Digit, Scene, Thing, Writing
from evomoe.mini.small_vlm import Architecture, build_processor
from evomoe.model.loading import load_model
from evomoe.paper.study import base_model
from evomoe.paper.study.base_model import CELL_CLASSES, CHARACTERS, PICTURE_CLASSES, cell_labels, picture_labels


def test_labels_by_hand():
    scene = Scene(
        things=(Thing("square", "green", "large", 0, 2),),
        writings=(Writing("ab1", 1, 9),),  # from the second half of the first cell, moved by a pixel
        digits=(Digit(7, 0, 3, 0), Digit(0, 1, 3, 2)),
        pattern="dotted",
        plus=True,
    )
    cells = cell_labels(asdict(scene))
    a, b, one = (CHARACTERS.index(character) + 1 for character in "ab1")
    assert cells[2] == [2, 2, 2, 0, 0, 0, 0]
    assert cells[4] == [0, 0, 0, 0, a, 0, 0] and cells[5] == [0, 0, 0, b, one, 0, 0]
    assert (cells[12][5], cells[13][6], cells[14][5]) == (8, 1, 1)
    assert sum(map(any, cells)) == 6
    assert picture_labels(asdict(scene)) == [3, 1, 0, 0]
    assert picture_labels(asdict(Scene(person="Bob", framed=True, style="shaded")))[1:] == [3, 2, 1]


@pytest.mark.parametrize("kind", ["single", "crowd", "page", "sum", "code", "foreign", "portrait", "poster"])
def test_labels_are_within_their_classes_and_tell_scenes_apart(kind):
    sampler = Sampler(random.Random(0), Handwriting.load(), "train")
    scenes = [asdict(sampler(kind)) for _ in range(60)]
    cells, pictures = torch.tensor([cell_labels(s) for s in scenes]), torch.tensor([picture_labels(s) for s in scenes])
    assert (cells >= 0).all() and (cells <= torch.tensor(CELL_CLASSES)).all()
    assert (pictures >= 0).all() and (pictures <= torch.tensor(PICTURE_CLASSES)).all()
    both = torch.cat([cells.flatten(1), pictures], 1)
    assert len(both.unique(dim=0)) > 10
    letters = sum(len(writing["text"]) for scene in scenes for writing in scene["writings"])
    assert (cells[..., 3:5] > 0).sum() == letters


def test_frequent_sentences_and_numerals_are_tokens_of_their_own():
    sizes = Architecture(vocabulary=300)
    processor = build_processor(["a number 123" * 9], sizes, numerals_apart=True, phrases=(SHORT_ANSWER,))
    tokenizer = processor.tokenizer
    ids = tokenizer(f"<image>123{SHORT_ANSWER}<|assistant|>")["input_ids"]
    assert len(ids) == 6 and tokenizer.decode(ids[1:-1]) == f"123{SHORT_ANSWER}"
    assert tokenizer.decode(ids, skip_special_tokens=True) == f"123{SHORT_ANSWER}"
    together = build_processor(["a number 123" * 9], sizes).tokenizer("123")["input_ids"]
    assert len(together) < 3


def test_the_base_that_comes_with_the_package_is_the_one_that_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("EVOMOE_CACHE", str(tmp_path))
    monkeypatch.setattr(base_model, "train", lambda width, seed: tmp_path / f"trained {width} {seed}")
    home = base_model.ensure()
    assert home == base_model.folder() and home.parent == base_model.SHIPPED
    assert [path.name for path in base_model.SHIPPED.iterdir()] == [home.name]  # nothing ships that nobody asks for
    size = sum(parameter.numel() for parameter in load_model(home).parameters())
    assert 1e6 < size < 5e6
    assert base_model.ensure("", 1) == tmp_path / "trained  1" and base_model.folder("", 1).parent == tmp_path
