"""How soon a second run on the same data starts: ``python benchmarks/second_start.py``; its first check takes many minutes.

The data are of the size of LLaVA's mix of 665,000 records. The yardstick is ``json.load`` of their file, with which LLaVA's own
trainer starts, and which looks at no record.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from timing import machine

from evomoe.demo.journey import DENSE_MODEL

FILE = "mix.json"
WORDS = [
    "a",
    "the",
    "of",
    "on",
    "red",
    "blue",
    "what",
    "is",
    "there",
    "shape",
    "left",
    "right",
    "above",
    "picture",
    "answer",
    "with",
    "one",
    "word",
    "yes",
    "no",
    "large",
    "small",
]


def written(folder: Path, records: int, pictures: int) -> Path:
    """A file of records, each with two to six turns, and its pictures, each a file of its own."""
    draw = random.Random(0)
    (folder / "pictures").mkdir()
    some = folder / "some.png"
    Image.new("RGB", (32, 24), "red").save(some)
    content = some.read_bytes()
    for number in range(pictures):
        (folder / "pictures" / f"{number}.png").write_bytes(content)
    with (folder / FILE).open("w") as file:
        for number in range(records):
            file.write("[" if number == 0 else ",\n")
            json.dump(record(number, draw, pictures), file)
        file.write("]")
    return folder / FILE


def record(number: int, draw: random.Random, pictures: int) -> dict[str, object]:
    def text(words: int) -> str:
        return " ".join(draw.choices(WORDS, k=words))

    turns = []
    for turn in range(draw.randint(1, 3)):
        mark = "<image>\n" if turn == 0 else ""
        turns += [{"from": "human", "value": mark + text(12)}, {"from": "gpt", "value": text(draw.choice([1, 20, 60]))}]
    return {"id": str(number), "image": f"pictures/{draw.randrange(pictures)}.png", "conversations": turns}


def start(data: str) -> None:
    """What the measured process does: all that a run does with its data before its first step. It prints the seconds."""
    from evomoe.data.conversations import ConversationDataset
    from evomoe.data.records import load_records
    from evomoe.model.loading import load_processor

    processor = load_processor(DENSE_MODEL)
    begin, computed = time.perf_counter(), time.process_time()
    dataset = ConversationDataset(load_records(data, workers=2), processor, 2048, workers=2)
    dataset.check()
    lengths = dataset.lengths()
    print(f"{time.perf_counter() - begin} {time.process_time() - computed} {len(lengths)}")


def load(data: str) -> None:
    """The yardstick's process."""
    begin, computed = time.perf_counter(), time.process_time()
    with open(data) as file:
        records = json.load(file)
    print(f"{time.perf_counter() - begin} {time.process_time() - computed} {len(records)}")


def measured(what: str, data: Path) -> tuple[float, float]:
    """Seconds on the clock and of computing."""
    command = [sys.executable, __file__, "--child", what, str(data)]
    clock, own, _ = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-3:])
    return clock, own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=665_000)
    parser.add_argument("--pictures", type=int, default=400_000)
    parser.add_argument("--folder", help="where the data are kept, and taken from if they are there")
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "DATA"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        what, data = options.child
        return {"start": start, "load": load}[what](data)
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        data = folder / FILE if (folder / FILE).exists() else written(folder, options.records, options.pictures)
        size = data.stat().st_size / 1e6
        print(f"{options.records} records, {options.pictures} pictures, {size:.0f} MB of JSON", flush=True)
        starts = {"first check": "start", "second start": "start", "third start": "start", "json.load": "load"}
        for name, what in starts.items():
            clock, own = measured(what, data)
            print(f"{name:<14} {clock:8.1f} s, {own:8.1f} s of them computing in the main process", flush=True)


if __name__ == "__main__":
    main()
