"""``python -m evomoe.mini OUT --seed 0`` writes the mini world into a new folder."""

import argparse

from evomoe.mini import write

parser = argparse.ArgumentParser(prog="python -m evomoe.mini", description="Writes the mini world into a new folder.")
parser.add_argument("folder", help="folder to make")
parser.add_argument("--seed", type=int, default=0, help="decides every picture and question (default 0)")
arguments = parser.parse_args()
write(arguments.folder, arguments.seed)
