"""The private names of transformers: all in one file, and all there in the version that is installed."""

import ast
import importlib
from pathlib import Path

import pytest

import evomoe
from evomoe.support import hf

ROOT = Path(evomoe.__file__).parent
NAMES = {name.rpartition(".")[2] for name in hf.SEEN_IN} | {
    "_is_hf_initialized",
    "_forward_hooks",
    "_output_capturing_hooks_installed",
}


@pytest.mark.parametrize("name", hf.SEEN_IN)
def test_the_installed_transformers_has_it(name):
    module, owner, attribute = name.rsplit(".", 2)
    assert hasattr(getattr(importlib.import_module(module), owner), attribute), f"{name} was last seen in {hf.SEEN_IN[name]}."


def test_no_other_file_reads_a_private_name_of_transformers():
    """Overriding a method, and calling the one that it overrides, is what the name is there for."""
    found = []
    for path in ROOT.rglob("*.py"):
        if path == Path(hf.__file__):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value in NAMES:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.value}")
            if not isinstance(node, ast.Attribute) or node.attr not in NAMES:
                continue
            owner = node.value
            is_super = isinstance(owner, ast.Call) and isinstance(owner.func, ast.Name) and owner.func.id == "super"
            if not is_super:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.attr}")
    assert found == []
