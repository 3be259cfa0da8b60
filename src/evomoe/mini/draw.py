"""A scene as a picture of 64 by 64 pixels."""

import math
import random

from PIL import Image, ImageChops, ImageDraw, ImageFont

from evomoe.mini.sampling import LETTER, Handwriting
from evomoe.mini.scene import GRID, PEOPLE, Digit, Scene, Thing, Writing

CELL = 16
SIZE = GRID * CELL
RADIUS = {"small": 4, "large": 6.5}
GRAIN = 6  # the brightest pixel of the noise, of 255

INK = {
    **{"red": (215, 30, 35), "green": (25, 150, 50), "blue": (35, 60, 215), "yellow": (245, 215, 20)},
    **{"purple": (135, 40, 165), "orange": (245, 135, 20), "cyan": (40, 200, 215), "black": (20, 20, 20)},
}
PAPER = {"white": (250, 250, 250), "cream": (250, 240, 215), "gray": (222, 222, 222), "sky": (218, 232, 248)}
OVERSAMPLING = 4  # shapes are drawn larger and shrunk, so that their edges are smooth


def draw(scene: Scene, handwriting: Handwriting, grain: int = 0) -> Image.Image:
    """The picture (64, 64) in RGB; ``grain`` seeds its noise."""
    paper = PAPER[scene.tint]
    image = Image.new("RGB", (SIZE * OVERSAMPLING,) * 2, paper)
    pen = ImageDraw.Draw(image)
    _pattern(pen, scene.pattern, tuple(channel - 28 for channel in paper))
    for thing in scene.things:
        _thing(pen, thing, scene.style)
    if scene.person:
        _face(pen, scene)
    if scene.framed:
        pen.rectangle((0, 0, SIZE * OVERSAMPLING - 1, SIZE * OVERSAMPLING - 1), outline=(150, 100, 50), width=OVERSAMPLING)
    image = image.resize((SIZE, SIZE), Image.Resampling.BOX)
    pen = ImageDraw.Draw(image)
    for writing in scene.writings:
        _writing(pen, writing)
    for digit in scene.digits:
        _digit(image, digit, handwriting)
    if scene.plus:
        first = scene.digits[0]
        x, y = (first.column + 1) * CELL + CELL // 2, first.row * CELL + CELL // 2
        pen.line((x - 4, y, x + 4, y), INK["black"], 2)
        pen.line((x, y - 4, x, y + 4), INK["black"], 2)
    noise = random.Random(grain).randbytes(3 * SIZE * SIZE)
    return ImageChops.subtract(image, Image.frombytes("RGB", image.size, noise).point(lambda level: level * GRAIN // 255))


def _pattern(pen: ImageDraw.ImageDraw, pattern: str, ink: tuple[int, ...]) -> None:
    whole, step = SIZE * OVERSAMPLING, CELL // 2 * OVERSAMPLING
    for down in range(0, whole, step):
        if pattern == "striped":
            pen.rectangle((0, down, whole, down + step // 2 - 1), ink)
        for right in range(0, whole, step):
            if pattern == "dotted":
                pen.ellipse((right + step // 4, down + step // 4, right + step * 3 // 4, down + step * 3 // 4), ink)
            if pattern == "checked" and (down + right) // step % 2:
                pen.rectangle((right, down, right + step - 1, down + step - 1), ink)


def _corners(shape: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """The corners of a shape that has some, around its centre."""
    if shape == "star":
        spokes = [(radius * 1.1 if n % 2 == 0 else radius * 0.45, math.pi * (n / 5 - 0.5)) for n in range(10)]
        return [(x + length * math.cos(angle), y + length * math.sin(angle)) for length, angle in spokes]
    arm = 0.36
    outline = {
        "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
        "bar": ((-1, -0.42), (1, -0.42), (1, 0.42), (-1, 0.42)),
        "triangle": ((0, -0.95), (1, 0.85), (-1, 0.85)),
        "diamond": ((0, -1.1), (0.8, 0), (0, 1.1), (-0.8, 0)),
        "cross": (
            *((-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm)),
            *((arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm)),
        ),
    }[shape]
    return [(x + right * radius, y + down * radius) for right, down in outline]


def _shape(pen: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, **paint) -> None:
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        pen.ellipse(box, **paint)
    elif shape == "ring":
        pen.ellipse(box, outline=paint.get("fill") or paint["outline"], width=int(radius * 0.42))
    else:
        pen.polygon(_corners(shape, x, y, radius), **paint)


def _thing(pen: ImageDraw.ImageDraw, thing: Thing, style: str) -> None:
    x = (thing.column * CELL + CELL / 2 + thing.shift[0]) * OVERSAMPLING
    y = (thing.row * CELL + CELL / 2 + thing.shift[1]) * OVERSAMPLING
    radius, ink = RADIUS[thing.size] * OVERSAMPLING, INK[thing.color]
    if style == "shaded":
        shade = tuple(channel * 2 // 5 + 80 for channel in ink)
        _shape(pen, thing.shape, x + 1.5 * OVERSAMPLING, y + 1.5 * OVERSAMPLING, radius, fill=shade)
    if style == "inked":
        _shape(pen, thing.shape, x, y, radius + 1.2 * OVERSAMPLING, fill=INK["black"])
    _shape(pen, thing.shape, x, y, radius, fill=ink)


def _face(pen: ImageDraw.ImageDraw, scene: Scene) -> None:
    shape, color = PEOPLE[scene.person]
    x, y = ((SIZE / 2 + moved) * OVERSAMPLING for moved in scene.shift)
    radius = 22 * OVERSAMPLING
    _shape(pen, shape, x, y, radius, fill=INK[color])
    y += radius * 0.15
    for side in (-1, 1):
        eye = (x + side * radius * 0.3, y)
        _shape(pen, "circle", *eye, radius * 0.15, fill=(255, 255, 255))
        _shape(pen, "circle", *eye, radius * 0.07, fill=INK["black"])
    pen.arc((x - radius * 0.3, y, x + radius * 0.3, y + radius * 0.5), 20, 160, INK["black"], width=radius // 16)


def _writing(pen: ImageDraw.ImageDraw, writing: Writing) -> None:
    font = ImageFont.load_default_imagefont()  # a bitmap: the same pixels on every machine
    for number, letter in enumerate(writing.text.upper()):
        pen.text((writing.start + number * LETTER + 1, writing.row * CELL + 2), letter, INK["black"], font)


def _digit(image: Image.Image, digit: Digit, handwriting: Handwriting) -> None:
    levels = bytes(int(level * 15.9) for level in handwriting.pixels[digit.sample].flatten())
    mask = Image.frombytes("L", (8, 8), levels).resize((CELL, CELL), Image.Resampling.BICUBIC)
    image.paste((70, 20, 20), (digit.column * CELL, digit.row * CELL), mask)
