"""Tables at the paper's scale: the numbers of Table 7, and commands that the command line takes."""

import re
import shlex

import pytest

from evomoe.cli import command_line as cli
from evomoe.paper.run_table import plan_table
from evomoe.paper.tables import TABLES
from evomoe.recipe.recipe import Recipe


@pytest.mark.parametrize("number", [name for name in TABLES if name.isdigit()])
def test_every_table_s_commands_are_taken(number, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr("evomoe.training.run.run", lambda recipe, *args, **kwargs: started.append(recipe) or "model")
    monkeypatch.setattr("evomoe.cli.verbs.check_paths", lambda *args: None)
    monkeypatch.setattr("evomoe.cli.verbs.hide_loading_bars", lambda: None)
    text = plan_table(number, study=tmp_path)
    commands = re.findall(r"^accelerate launch --num_processes 8 -m evomoe.cli (train .*)$", text, flags=re.M)
    for command in commands:
        assert cli.main(shlex.split(command)) == 0
    planned = [row for row in TABLES[number].rows if row.protocol == "equal"]  # at its scale all rows are the paper's protocol
    assert len(started) == len(commands) == len(planned) + len({row.width for row in planned})
    for recipe in started[1:]:
        assert all(8 * recipe.stage(n).batch_size * recipe.stage(n).accumulation in (64, 256) for n in recipe.stages)
        assert recipe.trainer["bf16"] is True


def test_evolution_on_the_warm_up_mix_has_the_steps_and_batches_of_stage_1(tmp_path):
    text = " ".join(plan_table("5", ["v-evo"], tmp_path).split())
    assert "MIMIC-IT, LRV, SViT, LVIS, then LLaVA-FT: LLaVA-mix-665k | II: 5,200, III: 10,395 |" in text
    recipe = Recipe.load(tmp_path / "paper" / "table5" / "Qwen-1.8B" / "v-evo.json")
    batches = {n: 8 * recipe.stage(n).batch_size * recipe.stage(n).accumulation for n in recipe.stages}
    assert batches == {2: 256, 3: 64} and recipe.stage2.data == "hybrid_pt.json"


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    assert cli.main(["table", "2", "--scale", "paper", "--dry-run", "--study", str(tmp_path / "study")]) == 0
    assert "OpenChat-7B" not in (said := capsys.readouterr().out) and "I: 5,200" in said
    assert not (tmp_path / "study").exists()


def test_the_numbers_are_the_paper_s(tmp_path):
    text = plan_table("2", ["evomoe"], tmp_path)
    assert "| II: 10,395, III: 10,395 |       152 |" in text and "I: 5,200 |        48 |" in text
    recipe = Recipe.load(tmp_path / "paper" / "table2" / "Qwen-1.8B" / "evomoe.json")
    assert (recipe.stage2.batch_size, recipe.stage2.accumulation, recipe.stage2.learning_rate) == (4, 2, 2e-5)
    assert "(b) MoE-tuning" not in text and "(a) dense" in text  # the baseline is always there


def test_a_recipe_that_cannot_be_read_is_named(tmp_path, capsys):
    (tmp_path / "broken.json").write_text("{}")
    for name, message in (("broken.json", "broken.json is not a recipe of this version"), ("none.json", "none.json")):
        with pytest.raises(SystemExit):
            cli.main(["train", "--recipe", str(tmp_path / name)])
        assert message in capsys.readouterr().err
