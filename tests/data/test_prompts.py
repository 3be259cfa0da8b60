"""The words in which benchmarks ask: training data may use them, and know nothing of evaluation."""

import ast
from pathlib import Path

import evomoe.data


def test_data_import_nothing_of_evaluation():
    for path in Path(evomoe.data.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and str(node.module).startswith("evomoe.evaluation")), path
