"""Runs the commands of docs/tutorial.md, and keeps the pictures that they draw in docs/tutorial.

Run it with ``make tutorial``. It takes some minutes on two CPU cores, and needs Chromium for the picture of ``evomoe look``.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageChops

DOCS = Path(__file__).parent
PAGE, PICTURES = DOCS / "tutorial.md", DOCS / "tutorial"
DRAWN = {"first/expert_load.png": "first_load.png", "pictures/figure_5.png": "figure_5.png"}
"""What the commands draw, and what the page calls it."""
LOOK, PATCH = "look.html", 15
"""The page of ``evomoe look``, and the patch whose probabilities the picture of it shows."""
MILLISECONDS = 2000
"""How long each frame of the animation stays."""


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """The page's recipe and commands in their order: ("yaml" or "bash", text)."""
    for found in re.finditer(r"^```(yaml|bash)\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        yield found[1], found[2]


def run(page: str, folder: Path) -> None:
    """Does in ``folder`` what the page says.

    Raises:
        subprocess.CalledProcessError: a command fails.
    """
    for language, text in blocks(page):
        if language == "yaml":
            (folder / "recipe.yaml").write_text(text, encoding="utf-8")
        else:
            print(f"$ {text}", flush=True)
            subprocess.run(["bash", "-euo", "pipefail", "-c", text], cwd=folder, check=True)


def photograph(chromium: str, page: Path, picture: Path) -> None:
    """An animated WebP of a page of ``evomoe look``: all MoE layers together, then one after the other."""
    source, frames = page.read_text(encoding="utf-8"), []
    layers = 1
    with tempfile.TemporaryDirectory() as folder:
        frame, shot = Path(folder) / "frame.html", Path(folder) / "frame.png"
        while len(frames) < layers:
            choice = f"choose({PATCH}); $('layer').value = {len(frames)}; $('layer').dispatchEvent(new Event('input'));"
            told = "document.title = L + 1;"
            frame.write_text(source + f"<script>{choice}{told}</script>", encoding="utf-8")
            command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1180,1100"]
            subprocess.run([*command, f"--screenshot={shot}", str(frame)], check=True, capture_output=True, timeout=120)
            done = subprocess.run([*command, "--dump-dom", str(frame)], check=True, capture_output=True, timeout=120, text=True)
            layers = int(re.findall(r"<title>(\d+)</title>", done.stdout)[0])
            with Image.open(shot) as image:
                frames.append(image.convert("RGB"))
    drawn = [ImageChops.difference(one, Image.new("RGB", one.size, "white")).getbbox() or (0, 0, *one.size) for one in frames]
    bottom = max(box[3] for box in drawn) + 16
    first, *others = [one.crop((0, 0, one.width, bottom)) for one in frames]
    first.save(picture, save_all=True, append_images=others, duration=MILLISECONDS, loop=0, quality=85, method=6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser, for the picture of evomoe look")
    parser.add_argument("--folder", help="where to run; a new folder unless named")
    arguments = parser.parse_args()
    if not arguments.chromium:
        sys.exit("--chromium: no browser was found; name one (Debian: apt-get install chromium).")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary)
        folder.mkdir(exist_ok=True)
        run(PAGE.read_text(encoding="utf-8"), folder)
        PICTURES.mkdir(exist_ok=True)
        for drawn, name in DRAWN.items():
            shutil.copyfile(folder / drawn, PICTURES / name)
        photograph(arguments.chromium, folder / LOOK, PICTURES / "look.webp")


if __name__ == "__main__":
    main()
