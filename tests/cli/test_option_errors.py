"""The same wrong option, given in Python and on the command line: each reader is told the name that they know."""

import pytest
from tiny import make, make_llava

from evomoe import attach, upcycle
from evomoe.cli import main
from evomoe.paper.run_table import run_table
from evomoe.recipe.options import EvolutionOptions, MoEOptions, StageOptions
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.run_folder import RunFolder
from evomoe.support.errors import OptionError, as_flag

OF_A_RUN = {
    "seed": ({"seed": -1}, ["--seed", "-1"]),
    "max_length": ({"max_length": 0}, ["--max-length", "0"]),
    "stages": ({"stages": (2, 1)}, ["--stages", "2", "1"]),
    "num_experts": ({"moe": {"num_experts": 1}}, ["--num-experts", "1"]),
    "num_experts_per_tok": ({"moe": {"num_experts_per_tok": 9}}, ["--num-experts-per-tok", "9"]),
    "aux_losses": ({"moe": {"aux_losses": {"balance": -1}}}, ["--aux-losses", "balance=-1"]),
    "expert_init": ({"stages": (1, 3)}, ["--stages", "1", "3"]),
    "evolution.beta_ranges": (
        {"evolution": {"beta_ranges": ((0.9, 0.8),) * 3}},
        ["--evolution.beta-ranges", *["0.9", "0.8"] * 3],
    ),
    "evolution.stop_fraction": ({"evolution": {"stop_fraction": 2.0}}, ["--evolution.stop-fraction", "2"]),
    "stage2.batch_size": ({"stage2": {"batch_size": 0}}, ["--stage2.batch-size", "0"]),
    "stage2.learning_rate": ({"stage2": {"learning_rate": 0.0}}, ["--stage2.learning-rate", "0"]),
    "stage3.trainer": ({"stage3": {"trainer": {"max_steps": 1}}}, ["--stage3.trainer", "max_steps=1"]),
    "trainer": ({"trainer": {"seed": 1}}, ["--trainer", "seed=1"]),
}
OF_A_CONVERSION = {
    "num_experts": ({"num_experts": 1}, ["--num-experts", "1"]),
    "expert_dropout": ({"expert_dropout": 1.0}, ["--expert-dropout", "1"]),
    "moe_layers": ({"moe_layers": "some"}, ["--moe-layers", "some"]),
    "router_options.rank": ({"router_options": {"rank": 0}}, ["--router-options.rank", "0"]),
    "init_options.std": (
        {"expert_init": "noise", "init_options": {"std": -1.0}},
        ["--expert-init", "noise", "--init-options", "std=-1"],
    ),
    "router_options.inner_options.rank": (
        {"router": "shuffled", "router_options": {"inner_options": {"rank": 0}}},
        ["--router", "shuffled", "--router-options.inner-options", "rank=0"],
    ),
}


def told(arguments: list[str], capsys) -> str:
    """What the command line says of arguments that it refuses."""
    assert main(arguments) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(("option", "changes", "flags"), [(name, *case) for name, case in OF_A_RUN.items()], ids=OF_A_RUN)
def test_an_option_of_a_run(option, changes, flags, capsys):
    parts = {"moe": MoEOptions, "evolution": EvolutionOptions, "stage2": StageOptions, "stage3": StageOptions}
    with pytest.raises(OptionError) as error:
        Recipe("m", "d", "o", **{name: parts[name](**value) if name in parts else value for name, value in changes.items()})
    assert error.value.option == option and str(error.value).startswith(f"{option}: ") and "--" not in str(error.value)
    said = told(["train", "--model", "m", "--data", "d", "--output", "o", *flags], capsys)
    assert said.startswith(f"evomoe: {as_flag(option)}: ") and "`" not in said


@pytest.mark.parametrize(
    ("option", "changes", "flags"), [(name, *case) for name, case in OF_A_CONVERSION.items()], ids=OF_A_CONVERSION
)
def test_an_option_of_a_conversion(option, changes, flags, workspace, capsys):
    with pytest.raises(OptionError) as error:
        upcycle(make_llava(), **changes)
    assert error.value.option == option and "--" not in str(error.value)
    said = told(["upcycle", str(workspace / "model"), str(workspace / "out"), *flags], capsys)
    assert said.startswith(f"evomoe: {as_flag(option)}: ") and "`" not in said


def test_an_option_of_attach_is_an_argument_there_and_a_flag_here(tmp_path, capsys):
    make("mixtral").save_pretrained(tmp_path / "sparse")
    with pytest.raises(OptionError, match="^rho: "):
        attach(make("mixtral"), rho=2)
    command = ["attach", str(tmp_path / "sparse"), str(tmp_path / "out")]
    assert "evomoe: --router-options.rho: 2 must" in told([*command, "--router-options.rho", "2"], capsys)
    twice = [*command, "--k-min", "1", "--router-options.k-min", "2"]
    assert told(twice, capsys).startswith("evomoe: --k-min: it is also given as --router-options.k-min")


@pytest.mark.parametrize("verb", [["params"], ["eval"], ["upcycle"], ["analyze"]])
def test_a_run_s_folder_in_place_of_a_model_s_names_the_model(tmp_path, capsys, verb):
    for stage in ("stage1_warmup", "stage2_evolution"):
        (tmp_path / "run" / stage / "model").mkdir(parents=True)
        (tmp_path / "run" / stage / "model" / "config.json").write_text("{}")
    more = {"eval": ["--limit", "1"], "upcycle": [str(tmp_path / "out")], "analyze": ["--data", "easy-vqa"]}.get(verb[0], [])
    run, model = tmp_path / "run", tmp_path / "run" / "stage2_evolution" / "model"
    assert told([*verb, str(run), *more], capsys) == f"evomoe: {run} is the folder of a run, not of a model; name {model}.\n"
    assert f"not of a model; name {model}." in told([*verb, str(model.parent), *more], capsys)


def test_a_checkpoint_of_a_router_that_was_not_imported_names_the_folder(tmp_path, capsys):
    model = upcycle(make_llava())
    model.save_pretrained(tmp_path / "sparse")
    config = tmp_path / "sparse" / "config.json"
    config.write_text(config.read_text().replace('"router": "dtr"', '"router": "mine"'))
    said = told(["params", str(tmp_path / "sparse")], capsys)
    assert f"evomoe: {tmp_path / 'sparse'}: its config.json has router: there is no 'mine'" in said and "import the file" in said


def test_what_another_program_says_in_backticks_is_no_flag(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert "`model_type`" in told(["params", str(tmp_path)], capsys)


def test_an_option_in_the_advice(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    recipe = Recipe("m", "d", str(tmp_path / "run"))
    recipe.save(tmp_path / "run" / "recipe.json")
    (tmp_path / "run" / "report.md").touch()
    with pytest.raises(OptionError, match=r"Add `resume=True` to go on with it"):
        RunFolder(recipe.output).check(recipe, resume=False)
    said = told(["train", "--model", "m", "--data", "d", "--output", str(tmp_path / "run")], capsys)
    assert said.startswith("evomoe: --output: ") and "Add --resume to go on with it" in said


@pytest.mark.parametrize(
    ("arguments", "flags", "message"),
    [
        ({"name": "77"}, ["77"], "name: there is no table '77'; choose from 2, 3,"),  # which is given by its place
        ({"name": "2", "rows": ("x",)}, ["2", "--rows", "x"], "rows: table 2 has no row 'x'"),
        ({"name": "2", "jobs": 0}, ["2", "--jobs", "0"], "jobs: 0 must be a whole number from 1 to 128."),
        ({"name": "2", "jobs": 9999}, ["2", "--jobs", "9999"], "jobs: 9999 must be a whole number from 1 to 128."),
    ],
)
def test_an_option_of_a_table(arguments, flags, message, capsys, tmp_path):
    with pytest.raises(OptionError, match=f"^{message}"):
        run_table(**arguments, study=tmp_path)
    shown = message if message.startswith("name") else f"--{message}"
    assert told(["table", *flags, "--study", str(tmp_path)], capsys).startswith(f"evomoe: {shown}")
