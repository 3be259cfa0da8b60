"""EvoMoE: any dense Hugging Face vision-language model becomes a sparse mixture of experts.

Importing this package imports neither torch nor transformers. It only makes sure that, once transformers' auto classes
are loaded, they know EvoMoE checkpoints.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from evomoe.model import registration as _registration

if TYPE_CHECKING:
    from evomoe.conversion.upcycling import upcycle
    from evomoe.recipe.recipe import Recipe

__version__ = "0.1.0"

_LAZY = {"upcycle": "evomoe.conversion.upcycling", "Recipe": "evomoe.recipe"}
__all__ = ["Recipe", "__version__", "upcycle"]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'evomoe' has no attribute {name!r}")


_registration.install()
