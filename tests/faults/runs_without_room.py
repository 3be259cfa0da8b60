"""Runs two stages under limits on the size of files, each a byte below that of a file which a run leaves; prints what they said.

Needs the folder of all tests on Python's path. Arguments: a folder, and how many limits to try, spread over all.
"""

import json
import resource
import shutil
import sys
from pathlib import Path

from small_runs import changed, make_recipe
from tiny import write_workspace

from evomoe.training.run import run


def run_under(limit: int, recipe) -> Exception | None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        run(recipe)
    except Exception as error:
        return error
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    return None


def main(folder: Path, count: int) -> None:
    workspace = write_workspace(folder)
    recipe = make_recipe(workspace, stages=(2, 3), steps=2)
    straight = run(recipe.but(output=str(workspace / "straight")))
    sizes = sorted({file.stat().st_size for file in (workspace / "straight").rglob("*") if file.is_file()})
    limits = [size - 1 for size in sizes if size > 1000]
    told = []
    for limit in limits[:: max(1, len(limits) // count)]:
        if error := run_under(limit, recipe):
            there = Path(recipe.output)
            left = [str(path) for path in there.rglob("*partial*")] if there.exists() else []
            final = run(recipe, resume="if begun")
            same = not changed(straight, final)
            told.append(
                {
                    "limit": limit,
                    "kind": type(error).__name__,
                    "message": str(error),
                    "run": recipe.output,
                    "left": left,
                    "same weights": same,
                }
            )
        shutil.rmtree(recipe.output, ignore_errors=True)
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
