"""All tables: their rows can be planned in small, and read without torch."""

import subprocess
import sys
from pathlib import Path

from evomoe.model.routers import ROUTERS
from evomoe.paper.study.scale import MiniScale
from evomoe.paper.study.study import cells
from evomoe.paper.tables import TABLES


def test_every_table_has_rows_that_can_be_planned(world):
    for number, table in TABLES.items():
        assert table.name == number and table.seeds >= (3 if number in ("2", "3", "4", "10", "11", "15") else 1)
        scale, bases = MiniScale(), {"": Path("b"), "narrow": Path("n"), "wide": Path("w")}
        worlds = {scale.new_records(row): world for row in table.rows}
        planned = cells(table.rows, (0, 1), scale, bases, worlds, "test")
        assert len({cell.scoring.name for cell in planned}) == 2 * len(table.rows)  # no two cells are one model asked alike
        for cell in planned:
            moe = cell.recipe.moe
            if 3 in cell.recipe.stages:
                ROUTERS[moe.router](8, moe.num_experts, **moe.router_options).check(moe.num_experts_per_tok, moe.gate)
            on = {stage: cell.recipe.stage(stage).data or cell.recipe.data for stage in cell.recipe.stages}
            counted = [stage for stage, data in on.items() if data.endswith(("stage2.json", "both.json"))]
            steps = sum(cell.recipe.stage(stage).steps for stage in counted)
            own = cell.row.longer * (800 if cell.row.protocol == "paper" else 600)
            assert steps == own * (2 if cell.row.name == "two" and number == "13" else 0.5 if number == "anyexperts" else 1)
            assert {cell.recipe.stage(stage).batch_size for stage in cell.recipe.stages} == {32}


def test_tables_and_plans_need_neither_torch_nor_transformers(tmp_path):
    code = """
import sys
sys.modules |= {"torch": None, "transformers": None}  # an import of them is an error
import evomoe.paper.figures.figure_options
from evomoe.paper.run_table import plan_table
from evomoe.paper.tables import TABLES
assert "accelerate launch" in plan_table("2", dry_run=True)
print(*TABLES)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == [*TABLES]
