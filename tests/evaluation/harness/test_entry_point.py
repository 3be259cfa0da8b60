"""What lmms-eval is told, without lmms-eval: the entry point and the model's module must be where they say."""

import sys
import tomllib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

PROJECT = Path(__file__).parents[3] / "pyproject.toml"


def test_the_entry_point_leads_to_the_model(monkeypatch):
    registry = ModuleType("lmms_eval.models.registry_v2")
    registry.ModelManifest = SimpleNamespace
    for name in ("lmms_eval", "lmms_eval.models"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, registry.__name__, registry)
    (entry,) = tomllib.loads(PROJECT.read_text())["project"]["entry-points"]["lmms_eval.models"].values()
    module, _, function = entry.partition(":")
    manifest = getattr(import_module(module), function)()
    for path in (manifest.simple_class_path, manifest.chat_class_path):
        module, _, name = path.rpartition(".")
        assert f"class {name}(" in Path(find_spec(module).origin).read_text()
