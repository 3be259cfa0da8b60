"""Tells transformers' auto classes about EvoMoE checkpoints, without importing transformers for those who do not use it.

``import evomoe`` followed by ``AutoModelForImageTextToText.from_pretrained(folder)`` must work, and ``evomoe --help`` must
not pay for torch. So, while transformers' auto classes are not loaded yet, a finder waits for their import.
"""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.util import find_spec

_AUTO = "transformers.models.auto.configuration_auto"


def install() -> None:
    """Registers now if transformers' auto classes are loaded, otherwise as soon as they are."""
    if _AUTO in sys.modules:
        _register()
    elif not any(isinstance(finder, _AutoClassesFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AutoClassesFinder())


def _register() -> None:
    families = import_module("evomoe.model.families")
    # While that module itself is being imported it has no such function yet: it registers at its end.
    if register := getattr(families, "register", None):
        register()


class _AutoClassesFinder(MetaPathFinder):
    """Lets the import of the auto classes happen as usual and registers when it is done."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != _AUTO:
            return None
        sys.meta_path.remove(self)  # so that the search below takes the usual way
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module) -> None:
        module.__spec__.loader = module.__loader__ = self.loader  # inspect reads the source through it
        self.loader.exec_module(module)
        _register()
