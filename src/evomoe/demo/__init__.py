"""The whole journey on a laptop: the small dense model of this package becomes an EvoMoE on easy-VQA."""

from evomoe.demo.journey import run_demo

__all__ = ["run_demo"]
