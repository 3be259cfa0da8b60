"""The classes of EvoMoE models under a name that stays: saved folders with remote code import this module, pickles name it.

Importing it registers the classes with transformers' auto classes. ``EvoMoELlavaConfig``, ``EvoMoELlavaForConditionalGeneration``
and so on are made when they are first asked for.
"""

from evomoe.model.families import AnyEvoMoEConfig, class_named

__all__ = ["AnyEvoMoEConfig"]


def __getattr__(name: str) -> type:
    if (found := class_named(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return found
