"""One split of the world while it is written: its sampler, its chance, its pictures."""

import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from evomoe.mini.draw import draw
from evomoe.mini.sampling import Sampler
from evomoe.mini.scene import Scene


@dataclass
class Studio:
    """Samples and draws the pictures of one split.

    Args:
        sampler: gives the scenes.
        rng: for questions and noise.
        advance: called for each picture, and for each question or conversation without one.
        drawing: False: `save` draws and writes nothing, but leaves the chance where it would be.
    """

    sampler: Sampler
    rng: random.Random
    advance: Callable[[], object]
    drawing: bool = True

    def draw(self, scene: Scene) -> Image.Image:
        self.advance()
        return draw(scene, self.sampler.handwriting, self.rng.getrandbits(32))

    def save(self, scene: Scene, path: Path) -> None:
        """Writes the picture by its suffix, .jpg or .png."""
        if not self.drawing:
            self.rng.getrandbits(32)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(self.draw(scene), path.suffix))


def encoded(image: Image.Image, suffix: str = ".jpg") -> bytes:
    """The file's bytes; JPEG at a quality at which thin letters and small colours stay what they are."""
    buffer = io.BytesIO()
    if suffix == ".png":
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()
