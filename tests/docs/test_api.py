"""The public names: the page on them is true, its examples run, and all that names them agrees."""

import ast
import dataclasses
import importlib
import inspect
import json
import re
import textwrap
from pathlib import Path

import pytest
import torch
from evaluation.official_files import WRITERS
from tiny import make, make_language_model, make_tokenizer, write_workspace
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

import evomoe

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
INIT = ast.parse(Path(evomoe.__file__).read_text(encoding="utf-8"))

SECTIONS = {title.replace("\\", ""): text for title, text in re.findall(r"^### (\S+)\n(.*?)(?=^##|\Z)", PAGE, flags=re.M | re.S)}
"""What the page says of each name."""
TABLES = [name for name in evomoe.__all__ if name.isupper()]
FUNCTIONS = [name for name in evomoe.__all__ if name.islower() and not name.startswith("_")]


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)


def told(name: str) -> ast.stmt:
    """The signature of a name as the page has it."""
    (statement,) = ast.parse(python_blocks(SECTIONS[name])[0].replace("class Recipe(", "def Recipe(")).body
    return statement


def signature(function: ast.stmt) -> tuple[str, str]:
    assert isinstance(function, ast.FunctionDef)
    return ast.unparse(function.args), ast.unparse(function.returns) if function.returns else ""


def signature_in_source(function) -> tuple[str, str]:
    (statement,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    return signature(statement)


def test_the_page_has_every_public_name_and_no_other():
    assert set(SECTIONS) == set(evomoe.__all__) and len(evomoe.__all__) == len(set(evomoe.__all__))
    for name, text in SECTIONS.items():
        sentence = text.strip().splitlines()[0]
        assert sentence[0].isupper() and len(sentence) > 20, name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_signature_on_the_page_is_the_real_one(name):
    assert signature(told(name)) == signature_in_source(getattr(evomoe, name))


@pytest.mark.parametrize("name", TABLES)
def test_the_type_of_a_table_on_the_page_is_the_real_one(name):
    module = importlib.import_module(evomoe._WHERE[name].partition(":")[0])
    annotated = [node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.AnnAssign)]
    (real,) = (node.annotation for node in annotated if isinstance(node.target, ast.Name) and node.target.id == name)
    on_page = told(name)
    assert isinstance(on_page, ast.AnnAssign) and ast.unparse(on_page.target) == name
    assert ast.unparse(on_page.annotation) == ast.unparse(real)
    assert isinstance(getattr(evomoe, name), dict)


def test_the_fields_of_a_recipe_on_the_page_are_the_real_ones():
    on_page = told("Recipe")
    assert isinstance(on_page, ast.FunctionDef)
    arguments, defaults = on_page.args.args, on_page.args.defaults
    fields = dataclasses.fields(evomoe.Recipe)
    assert [argument.arg for argument in arguments] == [field.name for field in fields]
    without = len(arguments) - len(defaults)
    for field, default in zip(fields, [None] * without + defaults, strict=True):
        if default is None:
            assert field.default is field.default_factory is dataclasses.MISSING, field.name
        elif isinstance(default, ast.Call):  # a part, whose own defaults the page does not repeat
            assert ast.unparse(default) == f"{type(field.default_factory()).__name__}()", field.name
        else:
            real = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            assert ast.literal_eval(default) == real, field.name


def test_the_methods_of_a_recipe_on_the_page_are_the_real_ones():
    on_page = told("Recipe")
    assert isinstance(on_page, ast.FunctionDef)
    for method in on_page.body:
        assert isinstance(method, ast.FunctionDef)
        assert signature(method) == signature_in_source(getattr(evomoe.Recipe, method.name))


def test_the_lists_of_public_names_agree():
    (checked,) = (node for node in INIT.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    for_checkers = {
        alias.asname or alias.name: f"{node.module}:{alias.name}"
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert for_checkers == evomoe._WHERE
    assert set(evomoe.__all__) == {*evomoe._WHERE, "__version__"}
    assert set(evomoe.__all__) <= set(dir(evomoe))


def test_public_names_are_loaded_lazily_and_others_do_not_exist():
    from evomoe.conversion.upcycling import upcycle as where_it_is_defined
    from evomoe.recipe.recipe import Recipe

    assert evomoe.upcycle is where_it_is_defined and evomoe.Recipe is Recipe
    with pytest.raises(AttributeError, match="module 'evomoe' has no attribute 'upcycel'"):
        evomoe.upcycel  # noqa: B018


@pytest.mark.parametrize("path", re.findall(r"`(evomoe\.[\w.]+Options)`", PAGE))
def test_classes_of_options_lie_where_the_page_says(path):
    module, _, name = path.rpartition(".")
    assert dataclasses.is_dataclass(getattr(importlib.import_module(module), name))


@pytest.fixture
def paths(tmp_path, monkeypatch):
    """The files that the page's examples name, in small, in the working folder."""
    write_workspace(tmp_path)
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "model").rename(tmp_path / "path" / "to" / "dense")
    (tmp_path / "data.json").rename(tmp_path / "train.json")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    make("mixtral").save_pretrained("path/to/mixtral")
    make_language_model().save_pretrained("path/to/language-model")
    make_tokenizer().save_pretrained("path/to/language-model")
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=16, patch_size=8)).save_pretrained("path/to/clip")
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained("path/to/clip")
    WRITERS["pope"](tmp_path / "benchmarks" / "pope")
    return tmp_path


def test_the_examples_run_one_after_the_other(paths, capsys):
    scope: dict = {}
    for name, text in SECTIONS.items():
        for code in python_blocks(text)[1:]:
            exec(compile(code, f"docs/api.md, {name}", "exec"), scope)
    assert type(scope["mixture"]).__name__ == "EvoMoEMixtralForCausalLM" and scope["llava"].config.image_seq_length == 4
    assert scope["trained"] == Path("runs/mine/stage3_routing/model") and (scope["trained"] / "config.json").is_file()
    assert "| pope" in scope["scores"] and (paths / "runs" / "scores").is_dir()
    assert "mean over 2 MoE layers" in scope["table"]
    assert "probe" in json.loads((paths / "runs" / "analysis" / "numbers.json").read_text())
    assert scope["recording"].counts[0].sum() > 0
    assert "dtr" in capsys.readouterr().out
