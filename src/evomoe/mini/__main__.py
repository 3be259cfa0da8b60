"""``python -m evomoe.mini OUT --seed 0`` writes the mini world into a new folder."""

import argparse

from evomoe.mini import Sizes, write

parser = argparse.ArgumentParser(prog="python -m evomoe.mini", description="Writes the mini world into a new folder.")
parser.add_argument("folder", help="folder to make")
parser.add_argument("--seed", type=int, default=0, help="decides every picture and question (default 0)")
parser.add_argument(
    "--fraction", type=float, default=1.0, help="how much of the usual number of records and questions (default 1)"
)
arguments = parser.parse_args()
try:
    write(arguments.folder, arguments.seed, Sizes().times(arguments.fraction))
except (ValueError, ImportError) as error:
    parser.error(str(error))
