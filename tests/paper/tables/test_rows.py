"""What every row of every table trains, and the numbers printed beside it, as a snapshot.

The snapshot is rows.txt beside this file. When a change to it is meant, write it anew:
``PYTHONPATH=src python tests/paper/tables/test_rows.py``
"""

import json
from dataclasses import asdict
from pathlib import Path

from evomoe.paper.study.scale import MINI
from evomoe.paper.tables import TABLES
from evomoe.paper.tables.table import Row, Table
from evomoe.recipe.recipe import Recipe

SNAPSHOT = Path(__file__).with_name("rows.txt")
EVOMOE = next(row for row in TABLES["2"].rows if row.name == "evomoe")


def recipe_of(row: Row) -> Recipe:
    return MINI.recipe(row, 0, Path("base"), Path("mini-world"))


def flat(values: dict, prefix: str = "") -> dict[str, str]:
    """Nested options by their path; those of stages that do not run are left out."""
    found = {}
    for name, value in values.items():
        if isinstance(value, dict) and name not in ("aux_losses", "router_options", "init_options"):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = json.dumps(value)
    return found


def line(row: Row) -> list[str]:
    """A row's name and the paper's numbers, then each option in which its recipe differs from EvoMoE's."""
    recipe, usual = recipe_of(row), flat(asdict(recipe_of(EVOMOE)))
    idle = tuple(f"stage{n}." for n in range(4) if n not in recipe.stages)
    own = {name: value for name, value in flat(asdict(recipe)).items() if not name.startswith(idle)}
    asked = [f"{name} {value}" for name, value in row.intervention.changes().items()]
    if row.width:
        asked.append(f"width {row.width}")
    numbers = " ".join("-" if number is None else f"{number:g}" for number in row.published)
    changed = [f"{name} {value}" for name, value in own.items() if usual[name] != value]
    return [f"{row.name}: {numbers}".rstrip(), *(f"    {one}" for one in asked + changed)]


def heading(table: Table) -> str:
    return f"{table.heading}: {' '.join(table.headings)}; baseline {table.baseline or 'none'}, seeds {table.seeds}"


def surface() -> str:
    usual = [f"    {name} {value}" for name, value in flat(asdict(recipe_of(EVOMOE))).items()]
    tables = [[heading(table), *(text for row in table.rows for text in line(row))] for table in TABLES.values()]
    return "\n\n".join("\n".join(part) for part in [["EvoMoE in small", *usual], *tables]) + "\n"


def test_rows_and_published_numbers_change_only_by_decision():
    assert surface() == SNAPSHOT.read_text(encoding="utf-8"), f"Changed on purpose? See the top of {__file__}."


def test_the_snapshot_holds_what_tells_rows_apart():
    text = SNAPSHOT.read_text(encoding="utf-8")
    assert "    moe.num_experts_per_tok 2" in text and "    shuffle 8" in text and "    stage2.learning_rate 0.002" in text
    assert "moe-tuning: 76.2 61 62.6 48 86.5 1288.1 59.4 65.5" in text


def test_a_seed_decides_data_order_router_and_beta():
    recipe = MINI.recipe(EVOMOE, 3, Path("base"), Path("mini-world"))
    assert recipe.seed == 3 and recipe.evolution.seed == 3


if __name__ == "__main__":
    SNAPSHOT.write_text(surface(), encoding="utf-8")
