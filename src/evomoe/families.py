"""The old name of ``evomoe.auto``, which folders that were saved before import."""

from evomoe.auto import AnyEvoMoEConfig

__all__ = ["AnyEvoMoEConfig"]
