"""Writes the mini world: train, validation and test, no scene in two of them."""

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from evomoe.mini.choice_files import write_mmbench, write_mme, write_pope, write_sqa
from evomoe.mini.claims import SUBTASKS
from evomoe.mini.pictures import Studio
from evomoe.mini.sampling import Handwriting, Sampler
from evomoe.mini.scene import Scene
from evomoe.mini.text_files import write_json
from evomoe.mini.training import STAGE1, STAGE2, Exchange, Mix, conversation, record
from evomoe.mini.vqa_files import write_gqa, write_textvqa, write_vqav2
from evomoe.mini.words import EXERCISES, LETTERS, exercise
from evomoe.support.errors import OptionError
from evomoe.support.files import cache_folder, new_folder, write_text

VERSION = 2
"""Grows whenever a seed gives other files than before."""

WRITERS: dict[str, Callable[[Path, Studio, int], None]] = {
    "vqav2": write_vqav2,
    "gqa": write_gqa,
    "sqa": write_sqa,
    "textvqa": write_textvqa,
    "pope": write_pope,
    "mme": write_mme,
    "mmbench": write_mmbench,
}
FOLDERS = tuple(WRITERS)
"""The folders of a split, one for each benchmark."""

README = """# A small synthetic world

Made by `evomoe.mini`, version {version}, seed {seed}: coloured shapes, words, numbers and handwritten digits (scikit-learn's)
on pictures of 64 by 64 pixels. `train/` holds conversations in LLaVA's JSON, and the exact
scene of every picture, by which a vision tower can be taught to see. `validation/` and `test/` hold seven sets each in the
official formats of VQAv2, GQA, ScienceQA, TextVQA, POPE, MME and MMBench, by folder: {folders}.

They exercise loaders, prompts and scorers, and compare small models with each other. They are no substitute for the real
benchmarks, whose names stand for the format alone: no score on them says anything about photographs.
"""


@dataclass(frozen=True)
class TestSizes:
    """How large the test sets of a split are.

    Attributes:
        vqav2: pictures, up to four questions each.
        gqa: pictures, up to four questions each.
        sqa: questions.
        textvqa: pictures, up to two questions each.
        pope: pictures, six questions each in each of the three files.
        mme: pictures of each of the 14 subtasks, two questions each.
        mmbench: groups, two to four rows each.
    """

    __test__ = False  # not pytest's

    vqav2: int = 500
    gqa: int = 500
    sqa: int = 900
    textvqa: int = 500
    pope: int = 150
    mme: int = 40
    mmbench: int = 420

    @property
    def steps(self) -> int:
        """Pictures, and questions without one."""
        return sum(vars(self).values()) + (len(SUBTASKS) - 1) * self.mme

    def __post_init__(self) -> None:
        if smallest := [name for name, size in vars(self).items() if size < 1]:
            raise OptionError(smallest[0], f"{getattr(self, smallest[0])} is too few; every test set needs at least 1.")


@dataclass(frozen=True)
class Sizes:
    """How large the world is: all but the test sets in training conversations, up to four questions each."""

    letters: int = 32_000
    words: int = 32_000
    stage1: int = 24_000
    stage2: int = 16_000
    validation: TestSizes = field(default_factory=lambda: TestSizes(250, 250, 450, 250, 75, 20, 210))
    test: TestSizes = field(default_factory=TestSizes)

    def times(self, fraction: float) -> "Sizes":
        """The same with this fraction of everything, at least one of each.

        Raises:
            OptionError: the fraction is not positive.
        """
        if not 0 < fraction < float("inf"):
            raise OptionError("fraction", f"{fraction} must be positive.")

        def part(sizes: TestSizes) -> TestSizes:
            return TestSizes(**{name: max(1, round(size * fraction)) for name, size in vars(sizes).items()})

        training = {name: max(1, round(size * fraction)) for name, size in vars(self).items() if isinstance(size, int)}
        return replace(self, **training, validation=part(self.validation), test=part(self.test))


def write(folder: str | os.PathLike[str], seed: int = 0, sizes: Sizes | None = None, training: bool = True) -> None:
    """Writes the world into a new folder; the same files, byte for byte, for the same seed, sizes and versions of the libraries.

    Args:
        folder: Must not exist.
        seed: Decides every picture and question.
        sizes: How many there are.
        training: Whether the training data are written too; without them the rest is the same, and there much sooner.

    Raises:
        ValueError: something of that name exists.
        ImportError: scikit-learn is not installed.
    """
    sizes = sizes or Sizes()
    handwriting = Handwriting.load()
    taken = set()
    total = (sizes.letters + sizes.words + sizes.stage1 + sizes.stage2) * training + sizes.validation.steps + sizes.test.steps
    with new_folder(folder) as home, tqdm(desc="mini world", total=total, unit=" pictures", mininterval=1.0) as bar:

        def studio(split: str, purpose: str) -> Studio:
            rng, drawing = random.Random(f"{VERSION}/{seed}/{split}/{purpose}"), training or split != "train"
            return Studio(Sampler(rng, handwriting, split, taken), rng, bar.update if drawing else int, drawing)

        for stage, mix, count in (("stage1", STAGE1, sizes.stage1), ("stage2", STAGE2, sizes.stage2)):
            _write_training(home / "train", stage, mix, count, studio("train", stage))
        if training:
            _write_words(home / "train", "letters", LETTERS, sizes.letters, studio("train", "letters"))
        # Takes scenes that the test sets may not have, as the stages' data do.
        _write_words(home / "train", "words", EXERCISES, sizes.words, studio("train", "words"))
        for split, wanted in (("validation", sizes.validation), ("test", sizes.test)):
            for name, writer in WRITERS.items():
                writer(home / split / name, studio(split, name), getattr(wanted, name))
        write_text(home / "README.md", README.format(version=VERSION, seed=seed, folders=", ".join(FOLDERS)))


def _write_training(folder: Path, stage: str, mix: Mix, count: int, studio: Studio) -> None:
    """One stage's conversations, their pictures in images/, and what each of these shows, exactly."""
    weights = [lesson.weight for lesson in mix.lessons.values()]
    records, scenes = [], {}
    for number in range(count):
        (kind,) = studio.rng.choices(list(mix.lessons), weights)
        identity = f"{stage}-{number:06d}"
        scene, image = (studio.sampler(kind), f"{identity}.jpg") if kind else (Scene(), None)
        exchanges: list[Exchange] = []
        while not exchanges:  # a scene may have nothing to ask in a mix
            exchanges = conversation(scene, mix, kind, studio.rng)
        if image is None:
            studio.advance()
        else:
            studio.save(scene, folder / "images" / image)
            scenes[image] = asdict(scene)
        records.append(record(identity, image, exchanges))
    if not studio.drawing:
        return
    write_json(folder / f"{stage}.json", records)
    write_json(folder / f"{stage}_scenes.json", scenes)


def _write_words(folder: Path, name: str, mix: Mix, count: int, studio: Studio) -> None:
    """Conversations without pictures."""
    weights = [lesson.weight for lesson in mix.lessons.values()]
    records = []
    for number in range(count):
        (kind,) = studio.rng.choices(list(mix.lessons), weights)
        exchanges: list[Exchange] = []
        while not exchanges:
            exchanges = exercise(studio.sampler, mix, kind, studio.rng)
        studio.advance()
        records.append(record(f"{name}-{number:06d}", None, exchanges))
    if studio.drawing:
        write_json(folder / f"{name}.json", records)


def cache(root: str | os.PathLike[str] | None = None) -> Path:
    """The folder for what is made once: ``root``, EVOMOE_CACHE, or ~/.cache/evomoe."""
    return Path(root or cache_folder())


def folder(seed: int = 0, root: str | os.PathLike[str] | None = None, stage2: int = 0) -> Path:
    """Where the world with this seed is, or will be, training data included; with ``stage2`` the one of so many records there."""
    return cache(root) / (f"mini-v{VERSION}-seed{seed}" + (f"-stage2-{stage2}" if stage2 else ""))


def ensure(seed: int = 0, root: str | os.PathLike[str] | None = None, training: bool = True, stage2: int = 0) -> Path:
    """The folder of the world with this seed, written on the first call.

    Args:
        seed: Decides every picture and question.
        training: Whether the training data are needed too.
        root: Where it is kept; EVOMOE_CACHE, or ~/.cache/evomoe, by default.
        stage2: Fine-tuning records; 0 for the usual number. More begin with the same ones; some test questions become others.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    home = folder(seed, root, stage2)
    if not training and not home.is_dir():
        home = home.with_name(f"{home.name}-without-training")
    if not home.is_dir():
        own = home.with_name(f"{home.name}.{os.getpid()}")
        write(own, seed, Sizes(stage2=stage2) if stage2 else None, training)
        try:
            os.replace(own, home)
        except OSError:  # another process was quicker
            shutil.rmtree(own)
            if not home.is_dir():
                raise
    return home
