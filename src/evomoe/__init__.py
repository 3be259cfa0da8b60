"""EvoMoE: any dense Hugging Face vision-language model becomes a sparse mixture of experts.

``__all__`` is what you may rely on. Importing this package imports neither torch nor transformers: each name is loaded when you
first use it. Once transformers' auto classes are loaded, they know EvoMoE checkpoints.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from evomoe.model.registration import install
from evomoe.support.version import __version__

if TYPE_CHECKING:
    from evomoe.analysis.analyze import analyze
    from evomoe.analysis.recording import record_routing
    from evomoe.conversion.attaching import attach
    from evomoe.conversion.checked_router import check_router
    from evomoe.conversion.composing import compose
    from evomoe.conversion.expert_init import INITS
    from evomoe.conversion.upcycling import upcycle
    from evomoe.evaluation.benchmarks import BENCHMARKS
    from evomoe.evaluation.evaluate import evaluate_checkpoint as evaluate
    from evomoe.model.aux_losses import AUX_LOSSES
    from evomoe.model.routers import ROUTERS
    from evomoe.model.routing import GATES
    from evomoe.recipe.named_recipes import RECIPES
    from evomoe.recipe.recipe import Recipe
    from evomoe.training.evolution import RULES
    from evomoe.training.run import run as train

__all__ = [
    "AUX_LOSSES",
    "BENCHMARKS",
    "GATES",
    "INITS",
    "RECIPES",
    "ROUTERS",
    "RULES",
    "Recipe",
    "__version__",
    "analyze",
    "attach",
    "check_router",
    "compose",
    "evaluate",
    "record_routing",
    "train",
    "upcycle",
]

_WHERE = {
    "AUX_LOSSES": "evomoe.model.aux_losses:AUX_LOSSES",
    "BENCHMARKS": "evomoe.evaluation.benchmarks:BENCHMARKS",
    "GATES": "evomoe.model.routing:GATES",
    "INITS": "evomoe.conversion.expert_init:INITS",
    "RECIPES": "evomoe.recipe.named_recipes:RECIPES",
    "ROUTERS": "evomoe.model.routers:ROUTERS",
    "RULES": "evomoe.training.evolution:RULES",
    "Recipe": "evomoe.recipe.recipe:Recipe",
    "analyze": "evomoe.analysis.analyze:analyze",
    "attach": "evomoe.conversion.attaching:attach",
    "check_router": "evomoe.conversion.checked_router:check_router",
    "compose": "evomoe.conversion.composing:compose",
    "evaluate": "evomoe.evaluation.evaluate:evaluate_checkpoint",
    "record_routing": "evomoe.analysis.recording:record_routing",
    "train": "evomoe.training.run:run",
    "upcycle": "evomoe.conversion.upcycling:upcycle",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'evomoe' has no attribute {name!r}")
    module, _, attribute = _WHERE[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)


install()
